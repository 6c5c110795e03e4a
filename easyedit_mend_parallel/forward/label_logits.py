"""Computes logits at chosen positions only: the output layer gets some rows of the hidden states.

Knows where a model's output layer is, but not what the logits are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.weights.whole import is_distributed


class LabelLogits:
    """Selects n rows of the hidden states (B, T, width) for an output layer: (1, n, width).

    If the layer gets other inputs, or has hooks, nothing is selected; `chosen` says which happened.
    """

    def __init__(self, shape: torch.Size, sequence: Tensor, position: Tensor) -> None:
        self._shape, self._sequence, self._position = shape, sequence, position
        self.chosen = False

    @contextmanager
    def before_output_layer(self, model: nn.Module) -> Iterator[None]:
        """While the context lasts, the model's output layer, if it has one, gets these rows."""
        layer = getattr(model, "get_output_embeddings", lambda: None)()
        # Hooks on the layer expect its rows as sequences × tokens.
        if layer is None or layer._forward_hooks:
            yield
            return
        with layer.register_forward_pre_hook(self, prepend=True):
            yield

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or is_distributed(inputs[0]):
            return None
        states = inputs[0]
        if states.dim() != 3 or states.shape[:2] != self._shape:
            return None
        self.chosen = True
        here = self._sequence.to(states.device), self._position.to(states.device)
        return (states[here].unsqueeze(0),)
