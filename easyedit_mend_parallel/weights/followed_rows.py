"""Follows the rows of a tensor through the functions that move them: which token each row is.

Knows functions of torch by name, and nothing of layers or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

SAME_ROWS = (
    "to",
    "contiguous",
    "clone",
    "detach",
    "float",
    "half",
    "bfloat16",
    "double",
    "type_as",
)
SAME_ORDER = ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze")
CHOOSING = ("__getitem__", "index_select", "repeat", "repeat_interleave", "expand")
MOVES = (*SAME_ROWS, *SAME_ORDER, *CHOOSING)
"""The functions that move whole rows and change none of them."""


@dataclass(frozen=True)
class Tokens:
    """Which token each row of a tensor is: `numbers` has the tensor's shape without the last
    dimension. `all` says whether these are all tokens in their order."""

    numbers: Tensor
    all: bool


class FollowedRows:
    """The rows of `x` (..., width), numbered in their order, and of what was made of them by moving
    whole rows. With None, no rows."""

    def __init__(self, x: Tensor | None) -> None:
        self._known: Any = WeakIdKeyDictionary()
        self.count = 0
        if x is not None:
            self.count = x.shape[:-1].numel()
            numbers = torch.arange(self.count, device=x.device).view(x.shape[:-1])
            self._known[x] = Tokens(numbers, all=True)

    def tokens_of(self, x: Tensor | None) -> Tokens | None:
        """Which tokens the rows of `x` are; None if that is not known."""
        found: Tokens | None = None if x is None else self._known.get(x)
        return found

    def moved(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        """Note which tokens the rows of `output` are: that of `function`, one of `MOVES`."""
        found = self.tokens_of(args[0]) if args and isinstance(args[0], Tensor) else None
        if found is None or output is args[0] or not isinstance(output, Tensor):
            return
        if name in SAME_ROWS:
            self._known[output] = Tokens(found.numbers.to(output.device), found.all)
            return
        if output.dim() < 2 or output.shape[-1] != args[0].shape[-1]:
            return
        # The function itself says where each row goes: each number in the place of its row.
        numbers = function(found.numbers.unsqueeze(-1).expand(args[0].shape), *args[1:], **kwargs)
        if numbers.shape == output.shape:
            all_there = found.all and name in SAME_ORDER
            self._known[output] = Tokens(numbers[..., 0].clone(), all_there)
