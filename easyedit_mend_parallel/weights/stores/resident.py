"""The store of a weight on the device where its layer computes. The weight is changed in place.

Tied weights then change too, and accelerate's keys (storage addresses) stay valid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.placement import RESIDENT
from easyedit_mend_parallel.weights.stores.memory import room_for
from easyedit_mend_parallel.weights.stores.protocol import (
    CurrentStore,
    WeightPlace,
    let_go,
    refuse_overflow,
    refuse_unwritable,
)
from easyedit_mend_parallel.weights.update import LowRankUpdate
from easyedit_mend_parallel.weights.whole import is_distributed


def offer(place: WeightPlace) -> ResidentStore | None:
    """A store for a weight on the device where its layer computes."""
    if place.placement.kept != RESIDENT or place.apply != "weight":
        return None
    return ResidentStore(place)


class ResidentStore:
    """The weight of a layer or of one expert, changed in place. Does not reference model or layer:
    a deleted model is freed.

    Stores that change a weight in place elsewhere derive from it, with `weight` and `is_here`.
    """

    def __init__(self, place: WeightPlace) -> None:
        self.target = place.target
        self.current_store = CurrentStore(place)
        refuse_unwritable(self.target, self.current_store.layer, self.weight)

    @property
    def weight(self) -> Tensor:
        """The layer's current weight; it may have been moved since an update was staged."""
        parameter = self.target.parameter(self.current_store.model)
        return self.target.part_of(parameter.detach())

    @property
    def is_here(self) -> bool:
        """Whether the layer still has the weight, on any device, and it is neither offloaded nor
        split between processes since."""
        parameter = self.target.parameter(self.current_store.model)
        return parameter.device.type != "meta" and not is_distributed(parameter)

    def read(self) -> Tensor:
        return self.weight

    def to_keep(self) -> Tensor:
        """What a backup is made of: the weight, or what it is rounded from."""
        return self.weight

    def stage(self, update: LowRankUpdate) -> ResidentStaged:
        """Back the weight up on its own device. Raises UpdateError as `refuse` does."""
        self.refuse(update)
        return ResidentStaged(self, update)

    def refuse(self, update: LowRankUpdate) -> None:
        """Raise UpdateError for an update that cannot be written: fp16 would overflow."""
        refuse_overflow(self.target, self.weight, update)

    @torch.no_grad()
    def put(self, bits: Tensor) -> None:
        self.weight.copy_(bits)

    @torch.no_grad()
    def add(self, update: LowRankUpdate) -> None:
        """Add `update` to the weight in place."""
        update.write(self.weight, self.target.transposed)


class ResidentStaged:
    """An update of a weight that is changed in place, with the weight's bits from before it."""

    independent = False

    def __init__(self, store: ResidentStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update = update
        self._dtype = store.weight.dtype
        bits = store.to_keep()
        self._kept: Tensor | None = room_for(store.current_store.layer, bits).copy_(bits)

    @property
    def before(self) -> Tensor | None:
        return None if self._kept is None else self._kept.to(self._dtype)

    def commit(self) -> None:
        if self._store.is_here:
            self._store.add(self._update)
        else:
            self._store.current_store.write(self._update)

    def undo(self) -> None:
        if self._kept is None:
            raise let_go(self._store.target)
        if self._store.is_here:
            self._store.put(self._kept)
        else:
            self._store.current_store.put(self._kept)

    def forget(self) -> None:
        self._kept = None
