"""Makes gradients pass through quantized layers. Recognises bitsandbytes' layers by their
attributes, never imports bitsandbytes, and knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """While the context lasts, gradients pass through the 4-bit layers of a model on a CPU.

    On a CPU with AVX512-BF16, bitsandbytes (0.50) packs the weight of a `Linear4bit` at its first
    forward pass without gradients, and from then on silently drops the gradient of its input. Here
    such a layer is unpacked when it is called with an input that needs a gradient, and gets the
    same packed weight back when the context ends.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(getattr(module, "weight", None), "quant_state"):
                stack.callback(module.register_forward_pre_hook(_unpacking(stack)).remove)
        yield


def _unpacking(stack: ExitStack) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def unpack(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        state = layer.weight.quant_state
        if not getattr(state, "packing_format_for_cpu", False) or not inputs[0].requires_grad:
            return
        stack.callback(_put_back, layer, layer.weight.data, state, dict(vars(state)))
        scales: Tensor = state.absmax
        layer.state_dict()  # bitsandbytes unpacks the weight when it is saved
        # It leaves the scales in the packed order, or quantizes them again (0.50.2).
        state.absmax, state.nested = scales.T.reshape(-1).float(), False

    return unpack


def _put_back(layer: Any, weight: Tensor, state: Any, fields: dict[str, Any]) -> None:
    layer.weight.data, layer.weight.quant_state = weight, state
    vars(state).clear()
    vars(state).update(fields)
