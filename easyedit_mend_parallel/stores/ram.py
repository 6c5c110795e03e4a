"""The store of a weight that accelerate keeps in RAM and loads for each forward pass.

It is changed in place where accelerate keeps it, so that tied weights follow and the storage
address, by which accelerate knows tied weights, stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easyedit_mend_parallel.holder import RAM, find_holder
from easyedit_mend_parallel.hookspecs import WeightPlace
from easyedit_mend_parallel.stores.protocol import (
    Whereabouts,
    let_go,
    refuse_overflow,
    refuse_unwritable,
)
from easyedit_mend_parallel.update import LowRankUpdate


def offer(place: WeightPlace) -> RamStore | None:
    """A store for a weight that is offloaded to RAM."""
    if place.placement.kept != RAM or place.apply != "weight":
        return None
    return RamStore(place)


class RamStore:
    """A weight in accelerate's dictionary, which is looked up anew each time and never held."""

    def __init__(self, place: WeightPlace) -> None:
        self.target = place.target
        self.whereabouts = Whereabouts(place)
        refuse_unwritable(self.target, self.whereabouts.layer, self.read())

    def read(self) -> Tensor:
        """The tensor that accelerate keeps, itself. Raises UpdateError once it is not in RAM."""
        weight = self.found()
        if weight is None:
            raise self.whereabouts.moved()
        return weight

    def found(self) -> Tensor | None:
        """The tensor that accelerate keeps now; None once the weight is kept in another way."""
        if self.whereabouts.layer.get_parameter("weight").device.type != "meta":
            return None
        holder = find_holder(self.whereabouts.model, self.target.name)
        return holder.in_memory if holder is not None and holder.kept == RAM else None

    def stage(self, update: LowRankUpdate) -> RamStaged:
        """Back the weight up, in RAM too. Raises UpdateError where fp16 would overflow."""
        refuse_overflow(self.target, self.read(), update)
        return RamStaged(self, update)

    @torch.no_grad()
    def put(self, bits: Tensor) -> None:
        self.read().copy_(bits)


class RamStaged:
    """An update of a weight in RAM, with the weight's bits from before it."""

    independent = False

    def __init__(self, store: RamStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update = update
        self.before: Tensor | None = store.read().clone()

    @torch.no_grad()
    def commit(self) -> None:
        weight = self._store.found()
        if weight is None:
            self._store.whereabouts.write(self._update)
        else:
            self._update.write(weight, self._store.target.transposed)

    @torch.no_grad()
    def undo(self) -> None:
        if self.before is None:
            raise let_go(self._store.target)
        weight = self._store.found()
        if weight is None:
            self._store.whereabouts.put(self.before)
        else:
            weight.copy_(self.before)

    def forget(self) -> None:
        self.before = None
