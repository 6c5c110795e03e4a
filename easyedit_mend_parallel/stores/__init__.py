"""Stores: how an update gets into a weight, by where the weight is kept.

A store first *stages* an update (all that can fail: room, dtype, the backup), then *commits* it
and can *undo* it. Nothing above this folder asks which kind of store it is.
"""

from __future__ import annotations

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.hookspecs import WeightPlace
from easyedit_mend_parallel.placement import place
from easyedit_mend_parallel.plugins import plugin_manager
from easyedit_mend_parallel.stores import output, resident, sharded
from easyedit_mend_parallel.stores.protocol import Staged, Store
from easyedit_mend_parallel.target import Target

__all__ = ["Staged", "Store", "store_for"]

OFFERS = (output.offer, sharded.offer, resident.offer)
"""This package's own kinds, in the order in which they are asked."""


def store_for(model: nn.Module, target: Target, apply: str = "weight") -> Store:
    """The store of `target`'s weight as it is kept now; `apply` as in `WeightPlace`.

    Raises PlacementError for a weight that is kept where no store can write.
    """
    where = WeightPlace(model, target, place(model, target), apply)
    offered: Store | None = plugin_manager().hook.weight_store(place=where)
    if offered is not None:
        return offered
    for offer in OFFERS:
        offered = offer(where)
        if offered is not None:
            return offered
    kept = {"cpu": "host memory (RAM)", "disk": "disk"}.get(where.placement.kept, "elsewhere")
    raise PlacementError(
        f"{target.name} is offloaded to {kept} and only visits {where.placement.device} while its "
        "layer computes. Editing offloaded weights is not supported yet: set `apply: output` in "
        "the hparams, or give its block a device of its own in device_map (model_kwargs), other "
        "blocks may stay offloaded"
    )
