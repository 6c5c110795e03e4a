"""Decides which of the scoped requests that fired in a sequence applies at each of its tokens.

Knows encoded states and token ids. Knows neither which requests fired nor their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.reading import Reading, answered_at
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, stands_in, words_of


@dataclass(frozen=True)
class PackedRequests:
    """The requests that can fire, oldest first, with their `keys` (R, S, d), padded with zeros,
    `weights` (R, S) and `thresholds` (R,). `subjects` maps a subject to indices of its requests."""

    requests: list[ScopedRequest]
    keys: Tensor
    weights: Tensor
    thresholds: Tensor
    subjects: dict[tuple[str, ...], list[int]]
    longest_subject: int


class ScopeDecision:
    """The decision between the requests of `packed`, with one `scope`; `read` gives the text of
    token ids."""

    def __init__(self, packed: PackedRequests, scope: Scope, read: Any) -> None:
        self._packed, self._scope, self._read = packed, scope, read

    def by_token(
        self, now: Reading, number: int, indices: Sequence[int]
    ) -> list[ScopedRequest | None]:
        """The request whose update applies at each of the L tokens of sequence `number` of `now`.

        `indices` are those of the requests that fired in the sequence; None where none applies.

        A request applies up to the token before the last one of its answer, if its logit is then
        furthest above its threshold. The text after an answer is decided separately.
        """
        real = now.real[number]
        encoded = now.encoded[number][real.to(now.encoded.device)].cpu()
        ids = None if now.ids is None else now.ids[number].cpu()[real].tolist()
        applied: list[ScopedRequest | None] = [None] * len(encoded)
        start = 0
        while start < len(encoded):
            over = torch.stack([self._over(index, encoded, ids, start) for index in indices])
            if not bool((over[:, -1] > 0).any()):
                break
            answered = (
                None if ids is None else _first_answered(self._packed, indices, over, ids, start)
            )
            which, end = answered or (int(over[:, -1].argmax()), len(encoded))
            applied[start:end] = [self._packed.requests[indices[which]]] * (end - start)
            start = end + 1
        decided: list[ScopedRequest | None] = [None] * len(real)
        for position, one in zip(real.nonzero()[:, 0].tolist(), applied, strict=True):
            decided[position] = one
        return decided

    def _over(self, index: int, encoded: Tensor, ids: list[int] | None, start: int) -> Tensor:
        """(L - start,): for the tokens from `start` up to each token, a request's logit minus its
        threshold."""
        request, limits = self._packed.requests[index], self._scope.thresholds
        keys, weights = self._packed.keys[index].cpu(), self._packed.weights[index].cpu()
        cosines = encoded[start:] @ keys.T
        if self._scope.skip_first and start == 0:
            cosines[0] = -1.0
        logits = self._scope.logits(cosines.cummax(0).values, weights)
        thresholds = torch.full_like(logits, limits.alias if request.subject else limits.states)
        if request.subject and ids is not None:
            thresholds[self._subject_end(ids[start:], request.subject) :] = limits.subject
        return logits - thresholds

    def _subject_end(self, ids: list[int], subject: tuple[str, ...]) -> int:
        """The position of the token that completes the subject in the text; the text's length if
        the subject does not occur."""
        if not stands_in(words_of(self._read(ids)), subject):
            return len(ids)
        low, high = 0, len(ids) - 1
        while low < high:
            middle = (low + high) // 2
            if stands_in(words_of(self._read(ids[: middle + 1])), subject):
                high = middle
            else:
                low = middle + 1
        return low


def _first_answered(
    packed: PackedRequests, indices: Sequence[int], over: Tensor, ids: list[int], start: int
) -> tuple[int, int] | None:
    """The request whose answer was completed first while its update applied, as an index into
    `indices`, and the position of the answer's last token. None if there is no such answer. `over`
    (n, L - start) has the results of `_over`."""
    given = []
    for which, index in enumerate(indices):
        fires = (over[which] > 0).nonzero()
        if len(fires):
            first = start + int(fires[0])
            end = answered_at(ids, first, packed.requests[index].answers)
            if end is not None:
                given.append((end, which))
    for end, which in sorted(given):
        if int(over[:, end - 1 - start].argmax()) == which:
            return which, end
    return None
