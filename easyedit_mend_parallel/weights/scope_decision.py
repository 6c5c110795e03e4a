"""Decides which of the scoped requests that fired in a sequence applies at each of its tokens.

Knows encoded states and token ids. Does not look for the requests, and knows no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.key_table import KeyTable
from easyedit_mend_parallel.weights.reading import answer_in
from easyedit_mend_parallel.weights.scope import ScopedRequest, stands_in, words_of


class ScopeDecision:
    """The decision for one sequence between requests of `table`.

    The sequence has the states `encoded` (L, d), `real` (L,), false for padding, and `ids` without
    padding, if known; `read` gives the text of token ids.
    """

    def __init__(
        self,
        table: KeyTable,
        encoded: Tensor,
        real: Tensor,
        ids: list[int] | None,
        read: Callable[[list[int]], str],
    ) -> None:
        self._table, self._real, self._ids, self._read = table, real, ids, read
        self._encoded = encoded[real.to(encoded.device)].cpu()

    def by_token(self, indices: Sequence[int]) -> list[ScopedRequest | None]:
        """The request whose update applies at each of the L tokens, among those at `indices`, which
        fired; None where none applies.

        The text is read in stretches, and one request applies in each: the one that is furthest
        above its threshold at the end of the stretch. A stretch ends with the token before the last
        one of its request's answer; or, without an answer, where another fact begins to fire, told
        by the tokens after the one with which its own began to. The first stretch, and one after an
        answer, apply from their first token on; another one applies where its fact begins to fire,
        so that it changes no earlier token.
        """
        length = len(self._encoded)
        applied: list[ScopedRequest | None] = [None] * length
        start = begin = 0
        indices, over = self._firing(indices, start)
        while indices:
            requests = [self._table.request(index) for index in indices]
            after = start + _first(over) + 1
            # Of one request, every stretch would be its own.
            later, over_later = self._firing(indices[1:] and indices, after)
            end = after + _first(over_later) if later else length
            answer = self._first_answer(requests, over, start, end)
            which = int(over[:, end - 1 - start].argmax()) if answer is None else answer[0]
            if answer is None:
                applied[begin:end] = [requests[which]] * (end - begin)
                start, begin, indices, over = after, end, later, over_later
            else:
                end = min(answer[1], length)
                applied[begin:end] = [requests[which]] * (end - begin)
                start = begin = end + 1
                indices, over = self._firing(indices, start)
        decided: list[ScopedRequest | None] = [None] * len(self._real)
        for position, one in zip(self._real.nonzero()[:, 0].tolist(), applied, strict=True):
            decided[position] = one
        return decided

    def _firing(self, indices: Sequence[int], start: int) -> tuple[list[int], Tensor]:
        """Those of `indices` that fire in the text from token `start` on, and `_over` of each."""
        if start >= len(self._encoded) or not indices:
            return [], torch.empty(0, 0)
        over = torch.stack([self._over(index, start) for index in indices])
        fire = over[:, -1] > 0  # a logit only rises as more is read
        return [one for one, yes in zip(indices, fire.tolist(), strict=True) if yes], over[fire]

    def _over(self, index: int, start: int) -> Tensor:
        """(L - start,): for the tokens from `start` up to each token, a request's logit minus its
        threshold."""
        scope, request = self._table.scope, self._table.request(index)
        keys, weights = (tensor.cpu() for tensor in self._table.keys_of(index))
        cosines = scope.cosines(self._encoded[start:], keys)
        if scope.skip_first and start == 0:
            cosines[0] = -1.0
        logits = scope.logits(cosines.cummax(0).values, weights)
        limits = scope.thresholds
        thresholds = torch.full_like(logits, limits.alias if request.subject else limits.states)
        if request.subject and self._ids is not None:
            end = self._subject_end(self._ids[start:], request.subject)
            thresholds[end:] = limits.subject
            if scope.relation is not None:
                key = self._table.relation_keys([index]).cpu()
                asked = scope.relation_logits(self._encoded[start:], key)[:, 0]
                logits[end:] = asked.cummax(0).values[end:]
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

    def _first_answer(
        self, requests: Sequence[ScopedRequest], over: Tensor, start: int, by: int
    ) -> tuple[int, int] | None:
        """The request whose answer is completed first, begun at position `by` or before while its
        update applied, as an index into `requests`, and the position of the answer's last token;
        beyond the text where the text ends in the middle of the answer. None without an answer.
        `over` (n, L - start) has the results of `_over`."""
        if self._ids is None:
            return None
        given = []
        for which, request in enumerate(requests):
            answer = answer_in(self._ids, start + _first(over[which : which + 1]), request.answers)
            if answer is not None and answer[0] <= by:
                given.append((answer[1], answer[0], which))
        for end, begun, which in sorted(given):
            if int(over[:, begun - 1 - start].argmax()) == which:
                return which, end
        return None


def _first(over: Tensor) -> int:
    """The first position at which any of `over` (n, L) is positive, where one is."""
    return int((over > 0).any(0).int().argmax())
