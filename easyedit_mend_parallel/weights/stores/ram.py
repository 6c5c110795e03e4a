"""The store of a weight that accelerate keeps in RAM and loads for each forward pass.

It is changed in place in accelerate's dictionary. Tied weights then change too, and the storage
address, by which accelerate identifies them, stays the same.
"""

from __future__ import annotations

from torch import Tensor

from easyedit_mend_parallel.weights.offload import RAM, find_holder
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.resident import ResidentStore


def offer(place: WeightPlace) -> RamStore | None:
    """A store for a weight that is offloaded to RAM."""
    if place.placement.kept != RAM or place.apply != "weight":
        return None
    return RamStore(place)


class RamStore(ResidentStore):
    """A weight in accelerate's dictionary. It is looked up each time and never referenced.

    Its backup is in RAM too; everything else is as for a resident weight.
    """

    @property
    def weight(self) -> Tensor:
        """accelerate's tensor itself, or a view of one expert's slice of it. Raises UpdateError if
        it is no longer in RAM."""
        weight = self._found()
        if weight is None:
            raise self.current_store.moved()
        return weight

    @property
    def is_here(self) -> bool:
        """Whether accelerate still keeps the weight in RAM."""
        return self._found() is not None

    def _found(self) -> Tensor | None:
        model = self.current_store.model
        if self.target.parameter(model).device.type != "meta":
            return None
        holder = find_holder(model, self.target.parameter_name)
        if holder is None or holder.kept != RAM:
            return None
        return self.target.part_of(holder.in_memory)
