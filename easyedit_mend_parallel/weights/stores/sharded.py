"""The store of a weight that is split between processes: each process changes the part it stores.

The part is on the device where its layer computes, or, of FSDP2 with CPUOffloadPolicy, on the CPU;
everything else is as for a resident weight. There is no communication: every process has the whole
rows of the update and uses its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.stored import StoredPart, stored_part
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace, refuse_overflow
from easyedit_mend_parallel.weights.stores.resident import ResidentStore
from easyedit_mend_parallel.weights.update import LowRankUpdate
from easyedit_mend_parallel.weights.whole import is_distributed, is_sharded, local_part


def offer(place: WeightPlace) -> ShardedStore | None:
    """A store for a weight that is a DTensor; raises PlacementError where `stored_part` does."""
    if place.placement.kept != "resident" or place.apply != "weight":
        return None
    if not is_sharded(place.target.parameter(place.model)):
        return None
    stored_part(place.model, place.target)
    return ShardedStore(place)


class ShardedStore(ResidentStore):
    """This process's part of a layer's weight. `Staged.before` is the part's bits."""

    @property
    def parameter(self) -> Tensor:
        """The layer's parameter, after an engine that left it whole put it back into its parts."""
        model = self.current_store.model
        reshard(model, self.target.layer_name)
        return self.target.parameter(model)

    @property
    def weight(self) -> Tensor:
        """The part as a plain tensor, which shares the layer's memory."""
        return local_part(self.parameter)

    @property
    def part(self) -> StoredPart:
        part = stored_part(self.current_store.model, self.target)
        assert part is not None  # `offer` found one
        return part

    @property
    def is_here(self) -> bool:
        """Whether the weight is still split between processes."""
        return is_distributed(self.target.parameter(self.current_store.model))

    def refuse(self, update: LowRankUpdate) -> None:
        """Raise UpdateError if fp16 would overflow in this process's part."""
        weight, transposed = self.weight, self.target.transposed
        for block in self.part.blocks:
            mine = update.of_part(block.rows, block.columns, transposed)
            refuse_overflow(self.target, block.of(weight), mine)

    def put(self, bits: Tensor) -> None:
        self.put_in(self.weight, bits)

    def add(self, update: LowRankUpdate) -> None:
        self.add_to(self.weight, update)

    @torch.no_grad()
    def put_in(self, stored: Tensor, bits: Tensor) -> None:
        """Set `stored`, of the part's shape, to `bits`: those of the part, or of the whole."""
        if bits.shape == stored.shape:
            stored.copy_(bits)
            return
        for block in self.part.blocks:
            block.of(stored).copy_(bits[block.rows, block.columns])

    @torch.no_grad()
    def add_to(self, stored: Tensor, update: LowRankUpdate) -> None:
        """Add this process's part of `update` to `stored`, of the part's shape, in place."""
        for block in self.part.blocks:
            mine = update.of_part(block.rows, block.columns, self.target.transposed)
            mine.write(block.of(stored), self.target.transposed)
