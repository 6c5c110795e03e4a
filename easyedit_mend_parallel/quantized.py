"""What quantized layers need before a gradient can pass through them. Knows bitsandbytes by what
its layers carry, never imports it, and knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """While the context lasts, gradients pass through the 4-bit layers of a model on a CPU.

    On a CPU with AVX512-BF16, bitsandbytes repacks a `Linear4bit` at its first forward without
    gradients, and no gradient passes through the packed weight: it is lost without an error.
    Such a layer is unpacked just before it is called with an input that needs a gradient;
    bitsandbytes packs it again when it likes, to the same bits.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(getattr(module, "weight", None), "quant_state"):
                stack.callback(module.register_forward_pre_hook(_unpack).remove)
        yield


def _unpack(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    packed = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    if packed and inputs[0].requires_grad:
        layer.state_dict()  # bitsandbytes unpacks the weight itself when it is saved
