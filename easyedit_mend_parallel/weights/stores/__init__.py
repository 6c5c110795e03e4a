"""Stores: how an update gets into a weight, by where the weight is kept.

A store first *stages* an update (all that can fail: room, dtype, the backup), then *commits* it
and can *undo* it. Nothing above this folder asks which kind of store it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights.offload import refuse_lost_files
from easyedit_mend_parallel.weights.placement import place, refuse_split_tie
from easyedit_mend_parallel.weights.stores import output, overlay, ram, resident, scoped, sharded
from easyedit_mend_parallel.weights.stores.memory import free_spare_memory
from easyedit_mend_parallel.weights.stores.overlay import limit_overlays
from easyedit_mend_parallel.weights.stores.protocol import Staged, Store, WeightPlace
from easyedit_mend_parallel.weights.target import Target

__all__ = ["Staged", "Store", "free_spare_memory", "prepare", "store_for"]

OFFERS = (output.offer, scoped.offer, sharded.offer, resident.offer, ram.offer, overlay.offer)
"""This package's own kinds, in the order in which they are asked."""
KINDS = tuple(offer.__module__.rpartition(".")[2] for offer in OFFERS)
"""Their names."""


def store_for(model: nn.Module, target: Target, apply: str = "weight") -> Store:
    """The store of `target`'s weight as it is kept now; `apply` as in `WeightPlace`.

    Raises PlacementError for a weight that is kept where no store can write.
    """
    where = WeightPlace(model, target, place(model, target), apply)
    if apply == "weight":
        refuse_split_tie(model, target, where.placement)
    offered: Store | None = plugin_manager().hook.weight_store(place=where)
    if offered is not None:
        return offered
    for offer in OFFERS:
        offered = offer(where)
        if offered is not None:
            return offered
    raise PlacementError(
        f"{target.name} is offloaded in a way that no store here knows, and only visits "
        f"{where.placement.device} while its layer computes. A plugin can offer a store for it "
        "(hook weight_store, see docs/plugins.md). Without one, set `apply: output` in the "
        "hparams, or give its block a device, 'cpu' or 'disk' in device_map (model_kwargs)"
    )


def prepare(
    model: nn.Module,
    targets: Sequence[Target],
    apply: str = "weight",
    overlay_limit: int | None = None,
) -> None:
    """What has to be right before the model is called, looked at anew for each edit.

    `apply` as in `WeightPlace`. `overlay_limit` (bytes) is how much memory edited weights may take
    that would otherwise lie on disk; None: as much as they need. Raises PlacementError where a
    weight is kept where no store can write, or where files that the model is read from are gone
    or were changed.
    """
    refuse_lost_files(model)
    limit_overlays(model, overlay_limit)
    for target in targets:
        store_for(model, target, apply)
