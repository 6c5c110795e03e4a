"""The memory of a model's scoped requests: decides whose update applies at each position, if any.

A decision on a prompt also holds for the text that continues it, with a cache and without. Knows
encoded states and token ids, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.reading import Reading, joined
from easyedit_mend_parallel.weights.row_keeper import KeptRows, RowKeeper
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, words_of
from easyedit_mend_parallel.weights.scope_decision import PackedRequests, ScopeDecision
from easyedit_mend_parallel.weights.update import LowRankUpdate

AT_ONCE = 1 << 18
"""Maximum number of cosines computed at once, so that they fit into a CPU's cache. The look-up is
exact."""
NOBODY = -1
"""The entry of a position at which no update applies."""


@dataclass
class _Held:
    """A request in the memory, and its rows for each target."""

    serial: int
    rows: dict[str, KeptRows] = field(default_factory=dict)


class ScopedMemory:
    """The scoped requests of one model, with one `scope`; `read` gives the text of token ids.

    Rows are added and removed for each target. A request is in the memory while it has rows. Of two
    requests with the same prompt, the later one replaces the other as long as it is in the memory.
    """

    def __init__(self, scope: Scope, read: Any) -> None:
        self.scope, self.read = scope, read
        self._held: dict[ScopedRequest, _Held] = {}
        self._serials = count()
        self._packed: PackedRequests | None = None
        self.version = 0
        self.kept = RowKeeper()
        self.key_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def requests(self) -> list[ScopedRequest]:
        """All requests, oldest first, including those that a later one replaces."""
        return sorted(self._held, key=lambda request: self._held[request].serial)

    @property
    def bytes(self) -> int:
        """Size of keys and rows in memory, in bytes; rows in files do not count."""
        return self.key_bytes + self.kept.bytes

    def add(self, request: ScopedRequest, target: str, rows: KeptRows, serial: int) -> None:
        """Add `rows` of `request` for a target; requests are ordered by `serial`."""
        if request not in self._held:
            self._held[request] = _Held(serial)
            self.key_bytes += size_of(request.keys)
        held = self._held[request]
        if target not in held.rows:
            held.rows[target] = rows
            self.kept.add(rows)
        self._changed()

    def take(self, request: ScopedRequest, target: str) -> KeptRows | None:
        """Remove and return the rows of `request` for a target. With its last rows the request is
        removed, too."""
        held = self._held.get(request)
        rows = None if held is None else held.rows.pop(target, None)
        if held is None or rows is None:
            return None
        self.kept.remove(rows)
        if not held.rows:
            del self._held[request]
            self.key_bytes -= size_of(request.keys)
        self._changed()
        return rows

    def keep_within(self, limit: int | None) -> None:
        """Set the limit of memory to `limit` bytes (None: unchanged); the oldest rows are moved to
        files. Raises UpdateError if no file can be written."""
        if limit is not None:
            self.kept.limit = limit
        self.kept.shrink(self.key_bytes)

    def next_serial(self) -> int:
        return next(self._serials)

    def rows(self, request: ScopedRequest, target: str) -> LowRankUpdate | None:
        """The rows of a request for a target, from memory or from a file; None if it has none."""
        held = self._held.get(request)
        rows = None if held is None else held.rows.get(target)
        return None if rows is None else self.kept.read(rows)

    def serial(self, request: ScopedRequest) -> int:
        """The serial number of a request, which all requests of one edit share."""
        return self._held[request].serial

    @property
    def targets(self) -> list[str]:
        """The names of the targets for which a request has rows, in the order of the first."""
        return list(dict.fromkeys(name for held in self._held.values() for name in held.rows))

    def holds(self, target: str) -> bool:
        """Whether any request has rows for the target."""
        return any(target in held.rows for held in self._held.values())

    def replaced(self, prompt: str) -> ScopedRequest | None:
        """The request that a new one with this prompt would replace."""
        return next((r for r in reversed(self.requests) if r.prompt == prompt), None)

    @torch.no_grad()
    def look_up(
        self, states: Tensor, real: Tensor, ids: Tensor | None, reading: Reading | None
    ) -> tuple[list[list[ScopedRequest | None]] | None, Reading]:
        """Decide whose update applies at each of T new positions of B sequences. Returns the
        decisions, B lists of T, and the new reading.

        `states` (B, T, D) are the inputs of the scope's blocks, `real` (B, T), on the CPU, is false
        for padding, `ids` (B, T) are the token ids if known, and `reading` is the earlier part of
        the sequences. The decisions are None if no update applies anywhere.
        """
        encoded = self.scope.encoded(states)
        now = joined(reading, Reading(encoded, real, ids))
        packed = self._pack(encoded.device)
        if reading is None or reading.version != self.version or reading.best is None:
            now.best = self._best(packed, now.encoded, self._compared(now.real))
        else:
            compared = self._compared(now.real)[:, -states.shape[1] :]
            now.best = torch.maximum(reading.best, self._best(packed, encoded, compared))
        now.version = self.version
        logits = self.scope.logits(now.best, packed.weights)
        fired = self._candidates(packed, logits, now)
        if not any(fired):
            return None, now
        new = states.shape[1]
        decision = ScopeDecision(packed, self.scope, self.read)
        decisions: list[list[ScopedRequest | None]] = []
        for number, indices in enumerate(fired):
            nothing: list[ScopedRequest | None] = [None] * new
            decided = decision.by_token(now, number, indices)[-new:] if indices else nothing
            decisions.append(decided)
        applied = any(one is not None for row in decisions for one in row)
        return (decisions if applied else None), now

    @torch.no_grad()
    def nearest(
        self, states: Tensor, ids: Sequence[int], most: int
    ) -> list[tuple[ScopedRequest, float, float]]:
        """The `most` requests that are nearest to firing in one whole text of `states` (T, D), each
        with its logit and its threshold."""
        packed = self._pack(self.scope.mean.device)
        if not packed.requests:
            return []
        encoded = self.scope.encoded(states)[None]
        real = torch.ones(1, len(states), dtype=torch.bool)
        logits = self.scope.logits(
            self._best(packed, encoded, self._compared(real)), packed.weights
        )[0]
        thresholds = packed.thresholds.clone()
        thresholds[self._standing(packed, list(ids))] = self.scope.thresholds.subject
        order = (logits - thresholds).topk(min(most, len(logits))).indices.tolist()
        return [(packed.requests[n], float(logits[n]), float(thresholds[n])) for n in order]

    def _changed(self) -> None:
        self._packed = None
        self.version += 1

    def _pack(self, device: torch.device) -> PackedRequests:
        if self.scope.mean.device != device:
            self.scope, self._packed = self.scope.to(device), None
        if self._packed is None:
            latest = {request.prompt: request for request in self.requests}
            requests = list(latest.values())
            width = max((len(request.keys) for request in requests), default=1)
            keys = torch.zeros(len(requests), width, self.scope.projection.shape[0], device=device)
            weights = torch.zeros(len(requests), width, device=device)
            subjects: dict[tuple[str, ...], list[int]] = {}
            for index, request in enumerate(requests):
                keys[index, : len(request.keys)] = request.keys.to(device)
                weights[index, : len(request.keys)] = request.weights.to(device)
                if request.subject:
                    subjects.setdefault(request.subject, []).append(index)
            limits = self.scope.thresholds
            thresholds = torch.tensor(
                [limits.alias if request.subject else limits.states for request in requests],
                device=device,
            )
            longest = max(map(len, subjects), default=0)
            self._packed = PackedRequests(requests, keys, weights, thresholds, subjects, longest)
        return self._packed

    def _compared(self, real: Tensor) -> Tensor:
        """Which tokens of `real` (B, L) are compared with keys."""
        return real & (real.cumsum(1) > 1) if self.scope.skip_first else real

    def _best(self, packed: PackedRequests, encoded: Tensor, compared: Tensor) -> Tensor:
        """(B, R, S): the largest cosine of each key with the `compared` (B, T) tokens."""
        here = compared.to(encoded.device)
        if not here.all():
            # Other tokens are replaced by a compared one, or by zeros: neither raises a maximum.
            first = here.int().argmax(1)
            filler = encoded[torch.arange(len(encoded), device=encoded.device), first]
            encoded = torch.where(here[:, :, None], encoded, filler[:, None])
            encoded = encoded * here.any(1)[:, None, None]
        n_sequences, length, _ = encoded.shape
        n_requests, width, size = packed.keys.shape
        best = encoded.new_empty(n_sequences, n_requests, width)
        step = max(1, AT_ONCE // max(1, n_sequences * length * width))
        for start in range(0, n_requests, step):
            keys = packed.keys[start : start + step].reshape(-1, size)
            cosines = (encoded.reshape(-1, size) @ keys.T).view(n_sequences, length, -1)
            best[:, start : start + step] = cosines.amax(1).view(n_sequences, -1, width)
        if not here.any(1).all():
            best[~here.any(1)] = -1.0
        return best

    def _candidates(self, packed: PackedRequests, logits: Tensor, now: Reading) -> list[list[int]]:
        """For each sequence, the indices of requests whose scope fires at any of its tokens.

        A logit only rises as more tokens are read, so the last one decides.
        """
        found: list[set[int]] = [set() for _ in logits]
        for number, index in (logits > packed.thresholds).nonzero().tolist():
            found[number].add(index)
        if packed.subjects and now.ids is not None:
            limit = self.scope.thresholds.subject
            for number, row in enumerate(now.ids.tolist()):
                ids = [token for token, real in zip(row, now.real[number], strict=True) if real]
                standing = self._standing(packed, ids)
                values = logits[number, standing].tolist() if standing else []
                found[number] |= {
                    index for index, v in zip(standing, values, strict=True) if v > limit
                }
        return [sorted(indices) for indices in found]

    def _standing(self, packed: PackedRequests, ids: list[int]) -> list[int]:
        """The indices of requests whose subject occurs in the text of `ids`."""
        words = words_of(self.read(ids)) if packed.subjects else ()
        return [
            index
            for length in range(1, packed.longest_subject + 1)
            for start in range(len(words) - length + 1)
            for index in packed.subjects.get(words[start : start + length], ())
        ]


def size_of(*tensors: Tensor) -> int:
    """Bytes of their elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def refuse_other_scope(memory: ScopedMemory, scope: Scope) -> None:
    """Raise UpdateError if `scope` is not the scope of `memory`."""
    if memory.scope.fingerprint() != scope.fingerprint():
        raise UpdateError(
            "the model has scoped edits with another scope: undo those, or edit with the archive "
            "that they were made with"
        )
