"""The store of a weight that lies where its layer computes: it is changed in place.

In place, so that tied weights follow and accelerate's keys (storage addresses) stay right.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.hookspecs import WeightPlace
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate

WRITABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a weight can be stored as and take an update. Quantized weights are integers or float8."""


def offer(place: WeightPlace) -> ResidentStore | None:
    """A store for a weight that lies where it computes."""
    if place.placement.kept != "resident" or place.apply != "weight":
        return None
    return ResidentStore(place.target, place.target.layer(place.model))


class ResidentStore:
    """The weight of `layer`. Holds the layer weakly: a deleted model is freed."""

    def __init__(self, target: Target, layer: nn.Module) -> None:
        self.target = target
        self._layer = weakref.ref(layer)
        weight = self.weight
        if weight.dtype not in WRITABLE:
            raise UpdateError(
                f"{target.name} is stored as {weight.dtype} ({type(layer).__name__}): a quantized "
                "weight cannot take an update. Set `apply: output` in the hparams, which adds the "
                "update to the layer's output instead, or load the model without "
                "quantization_config"
            )

    @property
    def weight(self) -> Tensor:
        """The weight as the layer has it now; it may have been moved since it was staged."""
        layer = self._layer()
        if layer is None:
            raise UpdateError(f"{self.target.name}: its model no longer exists")
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def stage(self, update: LowRankUpdate) -> ResidentStaged:
        """Back the weight up, on its own device. Raises UpdateError where fp16 would overflow."""
        weight = self.weight
        if weight.dtype == torch.float16 and len(update.keys) and weight.numel():
            largest = update.largest_possible() + weight.abs().max()
            if largest > torch.finfo(torch.float16).max:
                raise UpdateError(
                    f"the update of {self.target.name} could exceed what float16 holds; nothing "
                    "was written. Load the model in bfloat16 or float32"
                )
        return ResidentStaged(self, update)


class ResidentStaged:
    """An update of a resident weight, with the weight's bits from before it."""

    independent = False

    def __init__(self, store: ResidentStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update = update
        self.before: Tensor | None = store.weight.clone()

    @torch.no_grad()
    def commit(self) -> None:
        self._update.write(self._store.weight, self._store.target.transposed)

    @torch.no_grad()
    def undo(self) -> None:
        weight = self._store.weight
        if self.before is None:
            raise UpdateError(f"{self._store.target.name}: the backup was let go")
        if weight.device.type == "meta":
            raise UpdateError(
                f"{self._store.target.name} was offloaded after it was edited; dispatch the "
                "model so that it has a device of its own, then roll back again"
            )
        weight.copy_(self.before)

    def forget(self) -> None:
        self.before = None
