"""One change of a model: its updates, how to undo each of them, and the caller's handle.

Knows no stores and writes nothing: a handle calls the ledger.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.stores.protocol import Staged
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

if TYPE_CHECKING:
    from easyedit_mend_parallel.weights.ledger import Ledger


@dataclass
class Record:
    """One change that is in the model: its updates, and each weight's bits before it."""

    targets: dict[str, Target]
    updates: dict[str, LowRankUpdate]
    staged: dict[str, Staged]
    apply: str
    serial: int
    """Identifies this change among all changes of its model."""
    entry: weakref.ref[Entry] = field(init=False)

    @property
    def held(self) -> bool:
        """Whether the handle of this change is still referenced, so that it can be undone."""
        return self.entry() is not None

    def let_rows_go(self) -> None:
        """Forget the rows of updates that come out by themselves: their store has them."""
        for name, staged in self.staged.items():
            if staged.independent:
                staged.forget()
                del self.updates[name]


Rewritten = list[tuple[Record, str, Staged]]
"""Updates that were written again after an earlier change came out: (change, target, staged)."""


class Entry:
    """A handle on one change of a model. While it is referenced, the change can be undone alone."""

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self._ledger = weakref.ref(ledger)
        self._record = record

    @property
    def applied(self) -> bool:
        """Whether the change is in the model now."""
        ledger = self._ledger()
        return ledger is not None and any(r is self._record for r in ledger._records)

    def undo(self, *, alone: bool = False) -> None:
        """Undo the change, wholly or not at all. Does nothing if it was undone already.

        Restores the bits from before the change. If later changes cover the same weights, their
        updates are then added again in order; subtracting the update instead would leave rounding
        errors.

        If the model is split between processes, every rank must call this. With `alone`, this rank
        waits for no other, for cases in which it cannot know what the others do.
        """
        ledger = self._ledger()
        if ledger is not None:
            ledger._undo(self._record, alone)

    def again(self) -> Entry:
        """After `undo`: add the same updates again, as the last change. Raises as `Ledger.change`,
        and UpdateError if the rows were not kept."""
        record, ledger = self._record, self._ledger()
        if ledger is None:
            raise UpdateError("the model that was edited no longer exists")
        if record.targets.keys() - record.updates.keys():
            raise UpdateError("the rows of this change were not kept: load them again")
        return ledger.change(list(record.targets.values()), record.updates, record.apply)

    def before(self) -> dict[str, Tensor]:
        """{target name: the weight's bits before the change}; only while it is applied."""
        if not self.applied:
            return {}
        backups = {name: staged.before for name, staged in self._record.staged.items()}
        return {name: backup for name, backup in backups.items() if backup is not None}

    @property
    def model(self) -> nn.Module:
        """The model that was changed. Raises UpdateError if it was deleted."""
        ledger = self._ledger()
        if ledger is None:
            raise UpdateError("the model that was edited no longer exists")
        return ledger._live_model()

    @property
    def is_last(self) -> bool:
        """Whether no later change covers a weight of this one: `undo` then adds nothing again."""
        ledger = self._ledger()
        if ledger is None or not self.applied:
            return True
        index = next(n for n, r in enumerate(ledger._records) if r is self._record)
        return not covers(self._record, ledger._records[index + 1 :])


def dependent(record: Record) -> dict[str, Staged]:
    """The staged updates of `record` whose undo restores the weight's earlier bits."""
    return {name: one for name, one in record.staged.items() if not one.independent}


def covers(record: Record, later: Sequence[Record]) -> bool:
    """Whether one of the `later` changes covers a weight of `record`."""
    mine = dependent(record).keys()
    return any(mine & dependent(other).keys() for other in later)


class Put:
    """Replaces a change that was taken out, or leaves it out; see `Ledger.without`.

    A context: what was put comes out again if an exception leaves it.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._left_out = False
        self.entry: Entry | None = None

    def __enter__(self) -> Put:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self.entry is not None:
            self.entry.undo(alone=True)  # other processes may be elsewhere

    @property
    def is_done(self) -> bool:
        return self._left_out or self.entry is not None

    def __call__(
        self,
        targets: Sequence[Target],
        updates: Mapping[str, LowRankUpdate],
        apply: str = "weight",
    ) -> Entry:
        """Add another change instead, as `Ledger.change` does."""
        self.entry = self._ledger.change(targets, updates, apply)
        return self.entry

    def nothing(self) -> None:
        """Leave the change out permanently."""
        self._left_out = True
