"""Reuses memory for copies of weights on a CPU, where new pages take longer than the copy itself.

Knows neither updates nor stores. GPUs do not need this, since torch caches their memory.
"""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor, nn

_spare: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
"""{layer: memory that held a copy of its weight, and is no longer referenced}"""


def room_for(layer: nn.Module, weight: Tensor) -> Tensor:
    """An uninitialised tensor of the weight's shape, dtype and device, for a copy of it.

    When the tensor and all views of it are no longer referenced, its memory is kept for the next
    copy of the layer's weight: one piece per layer, until `free_spare_memory` or the layer is
    freed.
    """
    if weight.device.type != "cpu" or not weight.numel():
        return torch.empty_like(weight)
    memory = _spare.pop(layer, None)
    if memory is None or memory.numel() != weight.nbytes:
        memory = None  # freed before other memory is allocated
        memory = torch.empty(weight.nbytes, dtype=torch.uint8)
    seen = (ctypes.c_char * weight.nbytes).from_address(memory.data_ptr())
    weakref.finalize(seen, _wait, weakref.ref(layer), memory).atexit = False
    return torch.frombuffer(seen, dtype=weight.dtype).view(weight.shape)


def free_spare_memory(model: nn.Module) -> None:
    """Free the memory that is kept for copies of the weights of the model's layers."""
    for layer in model.modules():
        _spare.pop(layer, None)


def _wait(layer: weakref.ref[nn.Module], memory: Tensor) -> None:
    there = layer()
    if there is not None:
        _spare[there] = memory
