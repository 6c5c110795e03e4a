"""Memory for copies of weights on a CPU, used again: new pages cost several times what a copy does.

Knows neither updates nor stores. GPUs need none of this: torch keeps their memory by itself.
"""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor, nn

_spare: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
"""{layer: memory that held a copy of its weight, and that nobody sees any longer}"""


def room_for(layer: nn.Module, weight: Tensor) -> Tensor:
    """An uninitialised tensor of the weight's shape, dtype and device, for a copy of it.

    Once nobody holds the tensor, nor a view of it, its memory waits for the next copy of the
    layer's weight: one piece for each layer, until `free_spare_memory` or the layer's end.
    """
    if weight.device.type != "cpu" or not weight.numel():
        return torch.empty_like(weight)
    memory = _spare.pop(layer, None)
    if memory is None or memory.numel() != weight.nbytes:
        memory = None  # let go before other memory is taken
        memory = torch.empty(weight.nbytes, dtype=torch.uint8)
    seen = (ctypes.c_char * weight.nbytes).from_address(memory.data_ptr())
    weakref.finalize(seen, _wait, weakref.ref(layer), memory).atexit = False
    return torch.frombuffer(seen, dtype=weight.dtype).view(weight.shape)


def free_spare_memory(model: nn.Module) -> None:
    """Free the memory that waits for copies of the weights of the model's layers."""
    for layer in model.modules():
        _spare.pop(layer, None)


def _wait(layer: weakref.ref[nn.Module], memory: Tensor) -> None:
    there = layer()
    if there is not None:
        _spare[there] = memory
