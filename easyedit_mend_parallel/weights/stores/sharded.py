"""The store of a weight that is split between processes: each process changes the part it stores.

The part is on the device where its layer computes, or, of FSDP2 with CPUOffloadPolicy, on the CPU;
everything else is as for a resident weight. There is no communication: every process has the whole
rows of the update and uses its columns.
"""

from __future__ import annotations

from torch import Tensor

from easyedit_mend_parallel.weights.fully_sharded import reshard
from easyedit_mend_parallel.weights.sharding import stored_part
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged, ResidentStore
from easyedit_mend_parallel.weights.update import LowRankUpdate


def offer(place: WeightPlace) -> ShardedStore | None:
    """A store for a weight that is a DTensor; raises PlacementError where `stored_part` does."""
    if place.placement.kept != "resident" or place.apply != "weight":
        return None
    if stored_part(place.model, place.target) is None:
        return None
    return ShardedStore(place)


class ShardedStore(ResidentStore):
    """This process's shard of a layer's weight. `Staged.before` is the shard's bits."""

    @property
    def weight(self) -> Tensor:
        """The shard as a plain tensor, which shares the layer's memory."""
        reshard(self.current_store.model, self.target.layer_name)
        shard: Tensor = super().weight.to_local()  # type: ignore[attr-defined]
        return shard

    def stage(self, update: LowRankUpdate) -> ResidentStaged:
        """Back this process's shard up. Raises UpdateError if fp16 would overflow in it."""
        part = stored_part(self.current_store.model, self.target)
        assert part is not None  # `offer` found one
        inputs, outputs = part.columns, part.rows
        if self.target.transposed:
            inputs, outputs = outputs, inputs
        mine = LowRankUpdate(update.keys[:, inputs], update.values[:, outputs], update.request)
        return super().stage(mine)
