"""The keys of scoped requests as one table: which of them may fire in a text, found exactly.

Knows encoded states, keys and thresholds; knows no rows, and not where in a text a request fires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.scope import MOST_KEYS, Scope, ScopedRequest

AT_ONCE = 1 << 18
"""How many cosines are formed at once: as many as a cache holds."""
LEAD = 2
"""Of so many keys of each request, those of the largest weights, every text's cosines are formed.
With 1 for each other cosine they bound the logit; the rest is formed only if the bound is over the
threshold, so that nothing that fires is missed."""
MARGIN = 1e-3
"""How far below its threshold a bound counts as over it: more than rounding moves a logit."""
FEWEST = 64
"""Slots of an empty table."""


@dataclass(frozen=True)
class _Slot:
    """What the table has of one request besides tensors."""

    request: ScopedRequest
    serial: int


class KeyTable:
    """The requests that can fire, one slot for each prompt, on the device of `scope`.

    A slot without a request has the threshold infinity. Adding and removing a request costs the
    same however many there are.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._slots: list[_Slot | None] = []
        self._of_prompt: dict[str, int] = {}
        self._free: list[int] = []
        self._subjects: dict[tuple[str, ...], dict[int, None]] = {}
        self._lengths: Counter[int] = Counter()
        self._make(FEWEST)

    def __len__(self) -> int:
        return len(self._of_prompt)

    @property
    def slots(self) -> int:
        """How many slots are looked at, those without a request among them."""
        return len(self._slots)

    @classmethod
    def of(cls, scope: Scope, requests: Iterable[tuple[ScopedRequest, int]]) -> KeyTable:
        """The table of (request, serial), oldest first; of one prompt the last one counts."""
        table = cls(scope)
        for request, serial in requests:
            table.put(request.prompt, request, serial)
        return table

    def put(self, prompt: str, request: ScopedRequest | None, serial: int = 0) -> bool:
        """Let `request` be the one that counts for `prompt`, or none. Whether that is a change."""
        index = self._of_prompt.get(prompt)
        slot = None if index is None else self._slots[index]
        if (None if slot is None else slot.request) is request:
            return False
        if index is not None and slot is not None:
            self._remove(index, slot)
        if request is not None:
            self._add(request, serial)
        return True

    def request(self, index: int) -> ScopedRequest:
        slot = self._slots[index]
        assert slot is not None
        return slot.request

    def by_age(self, indices: Iterable[int]) -> list[int]:
        """`indices` of requests, the oldest first."""
        slots = self._slots
        return sorted(set(indices), key=lambda index: (slots[index].serial, index))  # type: ignore[union-attr]

    def keys_of(self, index: int) -> tuple[Tensor, Tensor]:
        """The keys (S, d) and their weights (S,) of one request."""
        return self._keys[index], self._weights[index]

    def relation_keys(self, indices: Sequence[int]) -> Tensor:
        """(n, d): the relation head's keys of requests; zeros without that head."""
        return self._relation_keys[list(indices)]

    def lead(self, encoded: Tensor, compared: Tensor) -> Tensor:
        """(B, LEAD, slots): the largest cosine of each leading key with the `compared` (B, T) of
        the tokens `encoded` (B, T, d or 2d); -1 where a sequence has none of those."""
        encoded = encoded[..., : self.scope.width]
        here = compared.to(encoded.device)
        some = here.any(1)
        if not bool(here.all()):
            # Other tokens are replaced by a compared one: that raises no maximum.
            first = here.int().argmax(1)
            filler = encoded[torch.arange(len(encoded), device=encoded.device), first]
            encoded = torch.where(here[:, :, None], encoded, filler[:, None])
        n_sequences, length, size = encoded.shape
        tokens, used = encoded.reshape(-1, size), len(self._slots)
        best = encoded.new_empty(n_sequences, LEAD, used)
        step = max(1, AT_ONCE // max(1, len(tokens)))
        for number in range(LEAD):
            for start in range(0, used, step):
                end = min(used, start + step)
                cosines = tokens @ self._leading[number, :, start:end]
                best[:, number, start:end] = cosines.view(n_sequences, length, -1).amax(1)
        if not bool(some.all()):
            best[~some] = -1.0
        return best

    def possible(self, best: Tensor) -> list[list[int]]:
        """For each sequence the indices of requests that may be over their threshold (that of texts
        in which no subject stands), from their leading keys' `best` (B, LEAD, slots)."""
        used = len(self._slots)
        weights = self._weights[:used, :LEAD].T
        scale = abs(self.scope.scale)
        bound = (best * weights).sum(1) * self.scope.scale + scale * self._rest[:used]
        bound += self.scope.shift + MARGIN * (1 + scale)
        found: list[list[int]] = [[] for _ in best]
        for number, index in (bound > self._thresholds[:used]).nonzero().tolist():
            found[number].append(index)
        return found

    def fired(self, encoded: Tensor, possible: Sequence[int], standing: Sequence[int]) -> set[int]:
        """Of the `possible` indices those over their threshold, and of those whose subject is
        `standing` in the text those over the subject's, for the tokens (L, d or 2d) of one text."""
        found: set[int] = set()
        limits = self._thresholds
        for indices, limit in ((possible, None), (standing, self.scope.thresholds.subject)):
            step = max(1, AT_ONCE // (max(1, len(encoded)) * self._keys.shape[1]))
            for start in range(0, len(indices), step):
                part = torch.tensor(indices[start : start + step], device=encoded.device)
                if limit is None:
                    over = self._logits(encoded, part) > limits[part]
                else:
                    over = self._named_logits(encoded, part) > limit
                found.update(part[over].tolist())
        return found

    def nearest(
        self, encoded: Tensor, standing: Sequence[int], most: int
    ) -> list[tuple[ScopedRequest, float, float]]:
        """The `most` requests that are nearest to firing, with their logits and thresholds."""
        indices = torch.tensor(self.by_age(self._of_prompt.values()), device=encoded.device)
        if not len(indices):
            return []
        step = max(1, AT_ONCE // (max(1, len(encoded)) * self._keys.shape[1]))
        logits = torch.cat([self._logits(encoded, part) for part in torch.split(indices, step)])
        limits = self._thresholds.clone()
        if standing:
            named = torch.tensor(standing, device=encoded.device)
            limits[named] = self.scope.thresholds.subject
            place = torch.isin(indices, named)
            logits[place] = self._named_logits(encoded, indices[place])
        order = (logits - limits[indices]).topk(min(most, len(logits))).indices.tolist()
        at = indices.tolist()
        return [(self.request(at[n]), float(logits[n]), float(limits[at[n]])) for n in order]

    @property
    def has_subjects(self) -> bool:
        return bool(self._subjects)

    def standing(self, words: Sequence[str]) -> list[int]:
        """The indices of the requests whose subject stands in a text of `words`."""
        text = tuple(words)
        return [
            index
            for length in self._lengths
            for start in range(len(text) - length + 1)
            for index in self._subjects.get(text[start : start + length], ())
        ]

    def _logits(self, encoded: Tensor, indices: Tensor) -> Tensor:
        """(n,): the logits of requests for one text."""
        keys = self._keys[indices]
        if not len(encoded):
            return self.scope.logits(-torch.ones_like(keys[..., 0]), self._weights[indices])
        best = self.scope.cosines(encoded, keys.flatten(0, 1)).amax(0).view(keys.shape[:2])
        return self.scope.logits(best, self._weights[indices])

    def _named_logits(self, encoded: Tensor, indices: Tensor) -> Tensor:
        """(n,): the logits of requests whose subject stands in the text: the relation head's."""
        if self.scope.relation is None or not len(encoded):
            return self._logits(encoded, indices)
        return self.scope.relation_logits(encoded, self._relation_keys[indices]).amax(0)

    def _make(self, capacity: int) -> None:
        size, device = self.scope.width, self.scope.mean.device
        self._keys = torch.zeros(capacity, MOST_KEYS, size, device=device)
        self._weights = torch.zeros(capacity, MOST_KEYS, device=device)
        self._relation_keys = torch.zeros(capacity, size, device=device)
        self._rest = torch.zeros(capacity, device=device)
        self._leading = torch.zeros(LEAD, size, capacity, device=device)
        self._thresholds = torch.full((capacity,), torch.inf, device=device)

    def _grow(self) -> None:
        before, used = vars(self).copy(), len(self._slots)
        self._make(2 * len(self._keys))
        for name in ("_keys", "_weights", "_relation_keys", "_rest", "_thresholds"):
            getattr(self, name)[:used] = before[name][:used]
        self._leading[:, :, :used] = before["_leading"][:, :, :used]

    def _add(self, request: ScopedRequest, serial: int) -> None:
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._slots)
            if index == len(self._keys):
                self._grow()
            self._slots.append(None)
        keys, weights = request.keys, request.weights
        if self.scope.relation is not None:
            self._relation_keys[index], keys, weights = keys[0], keys[1:], weights[1:]
        order = weights.argsort(descending=True, stable=True)
        keys, weights = keys[order].to(self._keys), weights[order].to(self._weights)
        n = len(keys)
        self._keys[index, :n], self._keys[index, n:] = keys, 0
        self._weights[index, :n], self._weights[index, n:] = weights, 0
        self._rest[index] = weights[LEAD:].sum()
        self._leading[:, :, index] = self._keys[index, :LEAD]
        self._slots[index] = _Slot(request, serial)
        self._of_prompt[request.prompt] = index
        limits = self.scope.thresholds
        self._thresholds[index] = limits.alias if request.subject else limits.states
        if request.subject:
            self._subjects.setdefault(request.subject, {})[index] = None
            self._lengths[len(request.subject)] += 1

    def _remove(self, index: int, slot: _Slot) -> None:
        request = slot.request
        self._thresholds[index] = torch.inf
        self._slots[index] = None
        del self._of_prompt[request.prompt]
        self._free.append(index)
        if request.subject:
            indices = self._subjects[request.subject]
            del indices[index]
            if not indices:
                del self._subjects[request.subject]
            self._lengths[len(request.subject)] -= 1
            if not self._lengths[len(request.subject)]:
                del self._lengths[len(request.subject)]
