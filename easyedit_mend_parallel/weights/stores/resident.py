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
        """Whether the layer still has the weight, on any device, and it is not offloaded."""
        return self.weight.device.type != "meta"

    def read(self) -> Tensor:
        return self.weight

    def stage(self, update: LowRankUpdate) -> ResidentStaged:
        """Back the weight up on its own device. Raises UpdateError if fp16 would overflow."""
        refuse_overflow(self.target, self.weight, update)
        return ResidentStaged(self, update)

    @torch.no_grad()
    def put(self, bits: Tensor) -> None:
        self.weight.copy_(bits)


class ResidentStaged:
    """An update of a weight that is changed in place, with the weight's bits from before it."""

    independent = False

    def __init__(self, store: ResidentStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update = update
        weight = store.weight
        self.before: Tensor | None = room_for(store.current_store.layer, weight).copy_(weight)

    @torch.no_grad()
    def commit(self) -> None:
        if self._store.is_here:
            self._update.write(self._store.weight, self._store.target.transposed)
        else:
            self._store.current_store.write(self._update)

    def undo(self) -> None:
        if self.before is None:
            raise let_go(self._store.target)
        if self._store.is_here:
            self._store.put(self.before)
        else:
            self._store.current_store.put(self.before)

    def forget(self) -> None:
        self.before = None
