"""The part of sequences that a scoped memory has read, from which it continues.

Knows encoded states and token ids, and no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reading:
    """The L tokens of B sequences that were read: their `encoded` states (B, L, d), `real` (B, L),
    which is false for padding, their `ids` (B, L) if known, and `best` (B, S, R), the largest
    cosine of each leading key with any token, for the memory of `version`."""

    encoded: Tensor
    real: Tensor
    ids: Tensor | None
    best: Tensor | None = None
    version: int = -1

    def __len__(self) -> int:
        return self.encoded.shape[1]

    def taken(self, sequences: Tensor) -> Reading:
        """The reading of the sequences with these indices, in this order."""
        here = sequences.to(self.encoded.device)
        ids = None if self.ids is None else self.ids[sequences.to(self.ids.device)]
        best = None if self.best is None else self.best[here]
        return Reading(self.encoded[here], self.real[here.cpu()], ids, best, self.version)

    def cut(self, length: int) -> Reading:
        """The reading of the first `length` tokens."""
        ids = None if self.ids is None else self.ids[:, :length]
        return Reading(self.encoded[:, :length], self.real[:, :length], ids)


def joined(before: Reading | None, new: Reading) -> Reading:
    """`before` and then `new`, as one reading, without the largest cosines."""
    if before is None:
        return new
    known = before.ids is not None and new.ids is not None
    return Reading(
        torch.cat([before.encoded.to(new.encoded.device), new.encoded], 1),
        torch.cat([before.real, new.real], 1),
        torch.cat([before.ids, new.ids], 1) if known else None,  # type: ignore[list-item]
    )


def answer_in(
    ids: list[int], first: int, answers: Sequence[tuple[int, ...]]
) -> tuple[int, int] | None:
    """The positions of the first and the last token of the answer that is completed first, among
    those that begin after position `first`. An answer in whose middle the text ends counts, with
    its last position beyond the text."""
    found = [
        (at + len(answer) - 1, at)
        for answer in answers
        for at in range(first + 1, len(ids))
        if tuple(ids[at : at + len(answer)]) == answer[: len(ids) - at]
    ]
    if not found:
        return None
    end, begin = min(found)
    return begin, end


def real_tokens(mask: object, before: int, shape: tuple[int, int]) -> Tensor:
    """Which of T new tokens of B sequences (`shape`) are real and no padding, from a forward's
    attention mask (B, at least T), or from what was made of it (B, 1, T, at least before + T);
    `before` tokens of each sequence were read earlier. All of them are, as far as no mask says."""
    if isinstance(mask, Mapping):  # one for each kind of attention
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    length = shape[1]
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, -length:].bool().cpu()
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] < before + length:
        return torch.ones(shape, dtype=torch.bool)
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    own = seen[:, -length:, before : before + length].diagonal(dim1=1, dim2=2)
    if mask.shape[-1] > before + length:  # a row that sees what is to come is that of padding
        own = own & ~seen[:, -length:, -1]
    return own.expand(shape).cpu()
