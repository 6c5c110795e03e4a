"""The store of a weight that DeepSpeed's ZeRO-3 partitions: each process changes its flat part.

If the engine has an optimizer with values of its own (fp32), from which it makes the part at each
step, those are changed, and the part is rounded from them. Everything else is as for a weight that
is sharded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.partitions import is_partitioned, master_of, set_master
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.sharded import ShardedStore
from easyedit_mend_parallel.weights.update import LowRankUpdate


def offer(place: WeightPlace) -> PartitionedStore | None:
    """A store for a weight that ZeRO-3 partitions."""
    if place.placement.kept != "resident" or place.apply != "weight":
        return None
    if not is_partitioned(place.target.parameter(place.model)):
        return None
    return PartitionedStore(place)


class PartitionedStore(ShardedStore):
    """This process's flat part (n,) of a layer's weight, and the optimizer's values of it."""

    def refuse(self, update: LowRankUpdate) -> None:
        """Raise UpdateError if fp16 would overflow in this process's part, and if the part is not
        what the optimizer's values are rounded to: its next step would lose the difference."""
        master, part = master_of(self.parameter), self.weight
        if master is not None and not torch.equal(master.to(part.device, part.dtype), part):
            raise UpdateError(
                f"{self.target.name} differs from the optimizer's own values of it, which replace "
                "it at the next step: it was changed after the engine was made. Call "
                "engine.optimizer.refresh_fp32_params() to keep that change"
            )
        super().refuse(update)

    def to_keep(self) -> Tensor:
        """What is changed: the optimizer's values (n,), or the part itself if there are none."""
        master = master_of(self.parameter)
        return self.weight if master is None else master

    def put(self, bits: Tensor) -> None:
        master = self.to_keep()
        self.put_in(master, bits)
        self._round(master)

    def add(self, update: LowRankUpdate) -> None:
        master = self.to_keep()
        self.add_to(master, update)
        self._round(master)

    @torch.no_grad()
    def _round(self, master: Tensor) -> None:
        """Give `master` to the optimizer, and the part its rounded values."""
        part = self.weight
        if master.data_ptr() != part.data_ptr():
            set_master(self.parameter, master)
            part.copy_(master)
