"""The store of a weight that is split between processes: each process changes its shard.

The shard is on the device where its layer computes; everything else is as for a resident weight.
There is no communication: every process has the whole rows of the update and uses its columns.
"""

from __future__ import annotations

from torch import Tensor

from easyedit_mend_parallel.weights.sharding import Shard, shard_of
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged, ResidentStore
from easyedit_mend_parallel.weights.update import LowRankUpdate


def offer(place: WeightPlace) -> ShardedStore | None:
    """A store for a weight that is a DTensor; raises PlacementError where `shard_of` does."""
    if place.placement.kept != "resident" or place.apply != "weight":
        return None
    shard = shard_of(place.model, place.target)
    if shard is None:
        return None
    return ShardedStore(place, shard)


class ShardedStore(ResidentStore):
    """This process's shard of a layer's weight. `Staged.before` is the shard's bits."""

    def __init__(self, place: WeightPlace, shard: Shard) -> None:
        self._shard = shard
        super().__init__(place)

    @property
    def weight(self) -> Tensor:
        """The shard as a plain tensor, which shares the layer's memory."""
        shard: Tensor = super().weight.to_local()  # type: ignore[attr-defined]
        return shard

    def stage(self, update: LowRankUpdate) -> ResidentStaged:
        """Back this process's shard up. Raises UpdateError if fp16 would overflow in it."""
        mine = LowRankUpdate(
            self._shard.columns(update.keys, "in"),
            self._shard.columns(update.values, "out"),
            update.request,
        )
        return super().stage(mine)
