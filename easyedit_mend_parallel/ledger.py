"""The one room that changes a model: updates go in wholly or not at all, and come out to the bit.

One ledger for each model, whoever edits it. It holds no model, only names, updates and backups.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import MendParallelError, UpdateError
from easyedit_mend_parallel.stores import Staged, store_for
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate, refuse_non_finite


@dataclass
class _Record:
    """One change that is in the model: what was added, and each weight's bits before it."""

    targets: dict[str, Target]
    updates: dict[str, LowRankUpdate]
    staged: dict[str, Staged]
    apply: str
    entry: weakref.ref[Entry] = field(init=False)

    @property
    def held(self) -> bool:
        """Whether somebody can still ask for this change to be undone."""
        return self.entry() is not None


class Entry:
    """A handle on one change of a model. While it is held, the change can be undone by itself."""

    def __init__(self, ledger: Ledger, record: _Record) -> None:
        self._ledger = weakref.ref(ledger)
        self._record = record

    @property
    def applied(self) -> bool:
        """Whether the change is in the model now."""
        ledger = self._ledger()
        return ledger is not None and any(r is self._record for r in ledger._records)

    def undo(self) -> None:
        """Take the change out of the model; does nothing if it is out already.

        The last change's weights get back the bits from before it. A change in the middle: the
        bits from before it, and the later updates added again in their order (subtracting it
        would leave rounding behind). Happens wholly or not at all.
        """
        ledger = self._ledger()
        if ledger is not None:
            ledger._undo(self._record)

    def before(self) -> dict[str, Tensor]:
        """{target name: the weight's bits from before the change}, as long as it is applied."""
        if not self.applied:
            return {}
        backups = {name: staged.before for name, staged in self._record.staged.items()}
        return {name: backup for name, backup in backups.items() if backup is not None}


class Ledger:
    """All changes of one model, oldest first. `Ledger.of(model)` is the way to get it."""

    _of_model: ClassVar[weakref.WeakKeyDictionary[nn.Module, Ledger]] = weakref.WeakKeyDictionary()
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: nn.Module) -> None:
        self.lock = threading.RLock()
        """Held while the model is changed; an editor holds it for its whole edit."""
        self._model = weakref.ref(model)
        self._records: list[_Record] = []
        self._base: dict[str, Staged] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Ledger:
        with cls._making:
            ledger = cls._of_model.get(model)
            if ledger is None:
                ledger = cls._of_model[model] = cls(model)
            return ledger

    def change(
        self,
        targets: Sequence[Target],
        updates: Mapping[str, LowRankUpdate],
        apply: str = "weight",
    ) -> Entry:
        """Add `updates` ({target name: update}) to the model: all of them, or none.

        `apply` says how they are felt (see `WeightPlace`). Raises UpdateError (an update that is
        not finite, or that a store cannot take) or PlacementError, with every weight as it was.
        The oldest changes that nobody holds are forgotten then: they stay in the model and only
        `undo_all` takes them out.
        """
        with self.lock:
            model = self._live_model()
            refuse_non_finite(updates)
            by_name = {target.name: target for target in targets if target.name in updates}
            staged = {
                name: store_for(model, target, apply).stage(updates[name])
                for name, target in by_name.items()
            }
            _commit(list(staged.values()))
            record = _Record(by_name, dict(updates), staged, apply)
            entry = Entry(self, record)
            record.entry = weakref.ref(entry)
            self._records.append(record)
            self._forget_unheld()
            return entry

    def undo_all(self) -> None:
        """Give every weight that was ever changed its bits from before the first change.

        If it breaks off, every change is still on record, and asking again finishes it.
        """
        with self.lock:
            first: dict[str, Staged] = dict(self._base)
            for record in self._records:
                for name, staged in record.staged.items():
                    first.setdefault(name, staged)
            for staged in first.values():
                staged.undo()
            for one in (self._base, *(record.staged for record in self._records)):
                for staged in one.values():
                    staged.forget()
            self._records.clear()
            self._base.clear()

    def _undo(self, record: _Record) -> None:
        with self.lock:
            places = [place for place, r in enumerate(self._records) if r is record]
            if not places:
                return
            later = self._records[places[0] + 1 :]
            again = self._take_out(record, later)
            del self._records[places[0]]
            for other, name, staged in again:
                other.staged[name] = staged
            for staged in record.staged.values():
                staged.forget()  # who holds the entry still holds no backup
            self._forget_unheld()

    def _take_out(
        self, record: _Record, later: Sequence[_Record]
    ) -> list[tuple[_Record, str, Staged]]:
        """Put back what was before `record`, add what came later again, and say what was staged."""
        again: list[tuple[_Record, str, Staged]] = []
        if not later:
            _undo_together(list(record.staged.values()))
            return again
        model = self._live_model()
        guards = [
            store_for(model, target, record.apply).stage(_nothing(record.updates[name]))
            for name, target in record.targets.items()
        ]
        try:
            for staged in record.staged.values():
                staged.undo()
            for other in later:
                for name in record.targets.keys() & other.targets.keys():
                    store = store_for(model, other.targets[name], other.apply)
                    staged = store.stage(other.updates[name])
                    staged.commit()
                    again.append((other, name, staged))
        except BaseException:
            for guard in guards:
                guard.undo()
            raise
        return again

    def _forget_unheld(self) -> None:
        """Let go of what nobody can ask for: memory stays flat however many edits are made.

        Kept are the bits from before the first change of each weight (the base), the last change,
        and every change whose entry somebody holds, with the updates that came after it.
        """
        while len(self._records) > 1 and not self._records[0].held:
            for name, staged in self._records.pop(0).staged.items():
                if self._base.setdefault(name, staged) is not staged:
                    staged.forget()
        covered = set(self._base)
        for record in self._records[:-1]:
            for name, staged in record.staged.items():
                if name in covered and not record.held:
                    staged.forget()
                covered.add(name)

    def _live_model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise UpdateError("the model that was edited no longer exists")
        return model


def _commit(staged: Sequence[Staged]) -> None:
    """Commit all; on any exception, an interrupt too, undo in reverse what may have begun."""
    begun: list[Staged] = []
    try:
        for one in staged:
            begun.append(one)
            one.commit()
    except BaseException:
        for one in reversed(begun):
            one.undo()
        raise


def _undo_together(staged: Sequence[Staged]) -> None:
    """Undo all; on any exception write those again that were undone.

    Written again, a weight has the bits that it had: the same update on the same bits.
    """
    begun: list[Staged] = []
    try:
        for one in staged:
            begun.append(one)
            one.undo()
    except BaseException:
        for one in reversed(begun):
            # What could not be undone is still as it was, and cannot be undone here either.
            with suppress(MendParallelError):
                one.undo()
                one.commit()
        raise


def _nothing(like: LowRankUpdate) -> LowRankUpdate:
    """An update without rows: staged, it is a guard that can restore the weight as it is now."""
    return LowRankUpdate(like.keys[:0], like.values[:0], torch.empty(0, dtype=torch.long))
