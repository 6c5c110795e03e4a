"""The memory of a model's scoped requests: decides whose update applies at each position, if any.

A decision on a prompt also holds for the text that continues it, with a cache and without. Knows
encoded states and token ids, and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.key_table import FEWEST, KeyTable
from easyedit_mend_parallel.weights.reading import Reading, joined
from easyedit_mend_parallel.weights.row_keeper import KeptRows, RowKeeper
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, words_of
from easyedit_mend_parallel.weights.scope_decision import ScopeDecision
from easyedit_mend_parallel.weights.update import LowRankUpdate

SPARSE = 4
"""The table is made anew, smaller, once the requests in it are 1/SPARSE of its slots."""


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
        self._of_prompt: dict[str, dict[ScopedRequest, None]] = {}
        self._of_target: Counter[str] = Counter()
        self._table: KeyTable | None = None
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
            self._of_prompt.setdefault(request.prompt, {})[request] = None
            self.key_bytes += size_of(request.keys)
            self._tell(request.prompt)
        held = self._held[request]
        if target not in held.rows:
            held.rows[target] = rows
            self._of_target[target] += 1
            self.kept.add(rows)

    def take(self, request: ScopedRequest, target: str) -> KeptRows | None:
        """Remove and return the rows of `request` for a target. With its last rows the request is
        removed, too."""
        held = self._held.get(request)
        rows = None if held is None else held.rows.pop(target, None)
        if held is None or rows is None:
            return None
        self.kept.remove(rows)
        self._of_target[target] -= 1
        if not held.rows:
            del self._held[request]
            del self._of_prompt[request.prompt][request]
            self.key_bytes -= size_of(request.keys)
            self._tell(request.prompt)
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
        return [name for name, count in self._of_target.items() if count]

    def holds(self, target: str) -> bool:
        """Whether any request has rows for the target."""
        return self._of_target[target] > 0

    def replaced(self, prompt: str) -> ScopedRequest | None:
        """The request that a new one with this prompt would replace."""
        found = None
        for request in self._of_prompt.get(prompt, ()):
            if found is None or self.serial(request) >= self.serial(found):
                found = request
        return found

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
        table = self._looked_up(states.device)
        encoded = self.scope.encoded(states)
        now = joined(reading, Reading(encoded, real, ids))
        compared = self._compared(now.real)
        if reading is None or reading.version != self.version or reading.best is None:
            now.best = table.lead(now.encoded, compared)
        else:
            new = compared[:, -states.shape[1] :]
            now.best = torch.maximum(reading.best, table.lead(encoded, new))
        now.version = self.version
        possible = table.possible(now.best)
        texts = [None] * len(possible) if now.ids is None else self._texts(now)
        decisions: list[list[ScopedRequest | None]] = []
        for number, indices in enumerate(possible):
            ids_here = texts[number]
            words = words_of(self.read(ids_here)) if table.has_subjects and ids_here else ()
            standing = table.standing(words)
            decided: list[ScopedRequest | None] = [None] * states.shape[1]
            if indices or standing:
                here = now.encoded[number][compared[number].to(encoded.device)]
                fired = table.by_age(table.fired(here, indices, standing))
                if fired:
                    sequence = (now.encoded[number], now.real[number], ids_here)
                    decision = ScopeDecision(table, *sequence, self.read)
                    decided = decision.by_token(fired)[-states.shape[1] :]
            decisions.append(decided)
        applied = any(one is not None for row in decisions for one in row)
        return (decisions if applied else None), now

    @torch.no_grad()
    def nearest(
        self, states: Tensor, ids: Sequence[int], most: int
    ) -> list[tuple[ScopedRequest, float, float]]:
        """The `most` requests that are nearest to firing in one whole text of `states` (T, D), each
        with its logit and its threshold."""
        table = self._looked_up(states.device)
        real = torch.ones(1, len(states), dtype=torch.bool)
        encoded = self.scope.encoded(states)[self._compared(real)[0].to(states.device)]
        words = words_of(self.read(list(ids))) if table.has_subjects else ()
        return table.nearest(encoded, table.standing(words), most)

    def _changed(self) -> None:
        self._table = None
        self.version += 1

    def _tell(self, prompt: str) -> None:
        """Let the table know which request counts for a prompt now."""
        table = self._table
        if table is None:
            self.version += 1
            return
        latest = self.replaced(prompt)
        if table.put(prompt, latest, 0 if latest is None else self.serial(latest)):
            self.version += 1
        if table.slots > SPARSE * max(FEWEST, len(table)):
            self._changed()

    def _looked_up(self, device: torch.device) -> KeyTable:
        """The table of the requests that can fire, on `device`."""
        if self.scope.mean.device != device:
            self.scope = self.scope.to(device)
            self._changed()
        if self._table is None:
            requests = ((request, self.serial(request)) for request in self.requests)
            self._table = KeyTable.of(self.scope, requests)
        return self._table

    def _compared(self, real: Tensor) -> Tensor:
        """Which tokens of `real` (B, L) are compared with keys."""
        return real & (real.cumsum(1) > 1) if self.scope.skip_first else real

    def _texts(self, now: Reading) -> list[list[int] | None]:
        """The token ids of each sequence, without padding."""
        assert now.ids is not None
        rows = zip(now.ids.tolist(), now.real.tolist(), strict=True)
        return [[one for one, is_real in zip(*row, strict=True) if is_real] for row in rows]


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
