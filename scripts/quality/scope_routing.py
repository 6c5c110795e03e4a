"""Which request fires for each text, with some of all requests in the memory: for `scopes.py`.

Knows keys and states, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, words_of


class Routing:
    """Which request fires for each text, with some of all requests in the memory.

    `found` are the words of each request's subject where it does not name it; empty if none were
    found.
    """

    def __init__(
        self,
        scope: Scope,
        requests: Sequence[ScopedRequest],
        found: Sequence[tuple[str, ...]],
        texts: Sequence[str],
        states: Any,
    ) -> None:
        width = max(len(request.weights) for request in requests)
        keys = torch.zeros(len(requests), width, len(requests[0].keys[0]))
        weights = torch.zeros(len(requests), width)
        for number, request in enumerate(requests):
            keys[number, : len(request.keys)] = request.keys
            weights[number, : len(request.weights)] = request.weights
        words = [words_of(text) for text in texts]
        self._places = {text: place for place, text in enumerate(texts)}
        self._limits = scope.thresholds
        self._subjects = {True: [one.subject for one in requests], False: list(found)}
        self._standing = {
            named: standing(words, subjects) for named, subjects in self._subjects.items()
        }
        logits, asked = [], []
        for text in texts:
            encoded = scope.encoded(states[text][1:] if scope.skip_first else states[text])
            best = scope.cosines(encoded, keys.flatten(0, 1)).amax(0).view(len(requests), width)
            logits.append(scope.logits(best, weights))
            if scope.relation is not None:
                asked.append(scope.relation_logits(encoded, keys[:, 0]).amax(0))
        self._logits = torch.stack(logits)
        self._asked = torch.stack(asked) if asked else self._logits

    def fired(self, texts: Sequence[str], among: Sequence[int], named: bool) -> list[int]:
        """For each text the request that fires of those `among`, or -1."""
        rows = torch.tensor([self._places[text] for text in texts], dtype=torch.long)
        logits = self._logits[rows][:, list(among)]
        standing = self._standing[named][rows][:, list(among)]
        known = torch.tensor([bool(self._subjects[named][one]) for one in among])
        limits = torch.where(
            standing,
            torch.tensor(self._limits.subject),
            torch.where(known, self._limits.alias, self._limits.states),
        )
        logits = torch.where(standing, self._asked[rows][:, list(among)], logits)
        over, which = (logits - limits).max(1)
        return [
            among[w] if o > 0 else -1 for o, w in zip(over.tolist(), which.tolist(), strict=True)
        ]


def standing(texts: Sequence[tuple[str, ...]], subjects: Sequence[tuple[str, ...]]) -> Tensor:
    """(texts, subjects): whether each text, as words, contains each subject's words."""
    numbers: dict[tuple[str, ...], list[int]] = {}
    for number, subject in enumerate(subjects):
        if subject:
            numbers.setdefault(subject, []).append(number)
    longest = max(map(len, numbers), default=0)
    found = torch.zeros(len(texts), len(subjects), dtype=torch.bool)
    for row, words in zip(found, texts, strict=True):
        for start in range(len(words)):
            for end in range(start + 1, min(start + longest, len(words)) + 1):
                for number in numbers.get(words[start:end], ()):
                    row[number] = True
    return found
