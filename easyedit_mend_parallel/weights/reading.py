"""The part of sequences that a scoped memory has read, from which it continues.

Knows encoded states and token ids, and no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reading:
    """The L tokens of B sequences that were read: their `encoded` states (B, L, d), `real` (B, L),
    which is false for padding, their `ids` (B, L) if known, and `best` (B, R, S), the largest
    cosine of each key with any token, for the memory of `version`."""

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


def answered_at(ids: list[int], first: int, answers: Sequence[tuple[int, ...]]) -> int | None:
    """The position of the last token of the first answer that begins after position `first`."""
    ends = [
        at + len(answer) - 1
        for answer in answers
        for at in range(first + 1, len(ids) - len(answer) + 1)
        if tuple(ids[at : at + len(answer)]) == answer
    ]
    return min(ends, default=None)
