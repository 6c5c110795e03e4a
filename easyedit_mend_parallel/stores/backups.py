"""Backups of weights on a CPU, whose memory is used again: new pages cost more than the copy.

Knows neither updates nor stores. GPUs need none of this: torch keeps their memory by itself.
"""

from __future__ import annotations

import weakref
from typing import ClassVar

import torch
from torch import Tensor, nn


class Backup:
    """The bits that a layer's weight has now.

    When it is let go its memory waits, one piece for each layer, for the layer's next backup,
    unless somebody was given the bits.
    """

    _spare: ClassVar[weakref.WeakKeyDictionary[nn.Module, Tensor]] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        spare = self._spare.pop(layer, None)
        if spare is not None and _alike(spare, weight):
            self.bits = spare.copy_(weight)
        else:
            del spare  # before the memory of another is taken
            self.bits = weight.clone()
        self._layer = weakref.ref(layer)
        self._given = False

    def give(self) -> Tensor:
        """The bits, for somebody who may keep them."""
        self._given = True
        return self.bits

    def let_go(self) -> None:
        """Nobody asks for this backup again: its memory may be written to."""
        layer = self._layer()
        if layer is not None and not self._given and self.bits.device.type == "cpu":
            self._spare[layer] = self.bits


def free_backups(model: nn.Module) -> None:
    """Free the memory that waits for the next backups of the model's layers."""
    for layer in model.modules():
        Backup._spare.pop(layer, None)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
