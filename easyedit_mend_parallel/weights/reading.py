"""What a scoped memory has read of some sequences, and goes on from.

Knows encoded states and token ids; knows no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reading:
    """What has been read of B sequences: `encoded` (B, L, d) states, which of their L tokens are
    `real` (B, L) and no padding, their `ids` (B, L) where they are known, and the best cosine of
    each key with any of them, `best` (B, R, S), for the memory of `version`."""

    encoded: Tensor
    real: Tensor
    ids: Tensor | None
    best: Tensor | None = None
    version: int = -1

    def __len__(self) -> int:
        return self.encoded.shape[1]

    def taken(self, sequences: Tensor) -> Reading:
        """The reading of the numbered sequences, in that order."""
        here = sequences.to(self.encoded.device)
        ids = None if self.ids is None else self.ids[sequences.to(self.ids.device)]
        best = None if self.best is None else self.best[here]
        return Reading(self.encoded[here], self.real[here.cpu()], ids, best, self.version)

    def cut(self, length: int) -> Reading:
        """The reading of the first `length` tokens."""
        ids = None if self.ids is None else self.ids[:, :length]
        return Reading(self.encoded[:, :length], self.real[:, :length], ids)


def joined(before: Reading | None, new: Reading) -> Reading:
    """What was read before with what is read now after it; best cosines are to be found anew."""
    if before is None:
        return new
    known = before.ids is not None and new.ids is not None
    return Reading(
        torch.cat([before.encoded.to(new.encoded.device), new.encoded], 1),
        torch.cat([before.real, new.real], 1),
        torch.cat([before.ids, new.ids], 1) if known else None,  # type: ignore[list-item]
    )


def answered_at(ids: list[int], first: int, answers: Sequence[tuple[int, ...]]) -> int | None:
    """The place of the last token of the first answer that begins after place `first`."""
    ends = [
        at + len(answer) - 1
        for answer in answers
        for at in range(first + 1, len(ids) - len(answer) + 1)
        if tuple(ids[at : at + len(answer)]) == answer
    ]
    return min(ends, default=None)
