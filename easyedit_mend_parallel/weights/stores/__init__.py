"""Stores: how an update gets into a weight, one module for each kind of storage.

A store first *stages* an update (everything that can fail: memory, dtype, the backup), then
*commits* it, and can *undo* it. Code outside this folder does not ask which kind of store it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights.modules import modules_around
from easyedit_mend_parallel.weights.offload import refuse_lost_files, send_back
from easyedit_mend_parallel.weights.placement import (
    Placement,
    place,
    refuse_shared,
    refuse_split_tie,
)
from easyedit_mend_parallel.weights.stores import (
    output,
    overlay,
    partitioned,
    ram,
    resident,
    scoped,
    sharded,
)
from easyedit_mend_parallel.weights.stores.memory import free_spare_memory
from easyedit_mend_parallel.weights.stores.overlay import limit_overlays
from easyedit_mend_parallel.weights.stores.protocol import Staged, Store, WeightPlace
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.zero3 import say_of_copies

__all__ = ["Staged", "Store", "free_spare_memory", "prepare", "store_for"]

OFFERS = (
    output.offer,
    scoped.offer,
    partitioned.offer,
    sharded.offer,
    resident.offer,
    ram.offer,
    overlay.offer,
)
"""This package's own stores, in the order in which they are tried."""
KINDS = tuple(offer.__module__.rpartition(".")[2] for offer in OFFERS)
"""Their names."""


def store_for(model: nn.Module, target: Target, apply: str = "weight") -> Store:
    """The store for `target`'s weight as it is currently stored; `apply` as in `WeightPlace`.

    Raises PlacementError if no store supports the weight.
    """
    return _offered(model, target, apply)[1]


def _offered(model: nn.Module, target: Target, apply: str) -> tuple[Placement, Store]:
    send_back(modules_around(model, target.layer_name))  # after somebody's broken forward pass
    where = WeightPlace(model, target, place(model, target), apply)
    if apply == "weight":
        refuse_split_tie(model, target, where.placement)
        say_of_copies(model, target.parameter_name)
    offered: Store | None = plugin_manager().hook.weight_store(place=where)
    if offered is not None:
        return where.placement, offered
    for offer in OFFERS:
        offered = offer(where)
        if offered is not None:
            return where.placement, offered
    raise PlacementError(
        f"{target.name} is offloaded in a way that no store supports, and is on "
        f"{where.placement.device} only while its layer computes. A plugin can offer a store "
        "for it (hook weight_store, see docs/plugins.md). Without one, set `apply: output` in the "
        "hparams, or give its block a device, 'cpu' or 'disk' in device_map (model_kwargs)"
    )


def prepare(
    model: nn.Module,
    targets: Sequence[Target],
    apply: str = "weight",
    overlay_limit: int | None = None,
) -> dict[str, Placement]:
    """Check, before each edit, everything that must be right before the model is called.

    Returns {target name: its placement}.

    `apply` as in `WeightPlace`. `overlay_limit` (bytes) limits the memory for edited weights whose
    files are on disk; None: no limit. Raises PlacementError if no store supports a weight, or if
    files of the model are gone or have changed; TargetError for a weight that two layers share.
    """
    refuse_lost_files(model)
    limit_overlays(model, overlay_limit)
    for target in targets:
        refuse_shared(model, target)
    return {target.name: _offered(model, target, apply)[0] for target in targets}
