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
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores import Staged, free_spare_memory, store_for
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, refuse_non_finite

SAME_SIZE = 1e-2
"""How far apart the sizes of two ranks' updates may be and count as the same update, computed on
each of them: kernels may round differently, other requests or archives give something else."""


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

    def undo(self, *, alone: bool = False) -> None:
        """Take the change out of the model; does nothing if it is out already.

        The last change's weights get back the bits from before it. A change in the middle: the
        bits from before it, and the later updates added again in their order (subtracting it
        would leave rounding behind). Happens wholly or not at all.

        Every rank that holds a part of the model has to call it; with `alone` none is waited for,
        which is for a rank that cannot know where the others are.
        """
        ledger = self._ledger()
        if ledger is not None:
            ledger._undo(self._record, alone)

    def again(self) -> Entry:
        """Add the same updates anew, as the last change, after `undo`; raises as `change` does."""
        record, ledger = self._record, Ledger.of(self.model)
        return ledger.change(list(record.targets.values()), record.updates, record.apply)

    def before(self) -> dict[str, Tensor]:
        """{target name: the weight's bits from before the change}, as long as it is applied."""
        if not self.applied:
            return {}
        backups = {name: staged.before for name, staged in self._record.staged.items()}
        return {name: backup for name, backup in backups.items() if backup is not None}

    @property
    def model(self) -> nn.Module:
        """The model that was changed. Raises UpdateError once it is gone."""
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
        place = next(n for n, r in enumerate(ledger._records) if r is self._record)
        mine = _dependent(self._record).keys()
        return not any(mine & _dependent(other).keys() for other in ledger._records[place + 1 :])


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
        self._settled: list[Staged] = []
        """What comes out by itself (`Staged.independent`) and only `undo_all` can ask for."""

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
            ranks = Ranks.of(model)
            by_name = {target.name: target for target in targets if target.name in updates}
            with ranks.agree("stage the update"):
                refuse_non_finite(updates)
                staged = {
                    name: store_for(model, target, apply).stage(updates[name])
                    for name, target in by_name.items()
                }
                size = 0.0 if ranks.alone else _size(updates)
            if not ranks.same(size, tolerance=SAME_SIZE):
                raise UpdateError(
                    "the ranks that hold this model computed different updates; nothing was "
                    "written. Give every rank the same requests and the same archive"
                )
            _commit(list(staged.values()), ranks)
            record = _Record(by_name, dict(updates), staged, apply)
            entry = Entry(self, record)
            record.entry = weakref.ref(entry)
            self._records.append(record)
            self._forget_unheld()
            return entry

    @property
    def is_empty(self) -> bool:
        """Whether no change is in the model."""
        return not (self._records or self._base or self._settled)

    def before(self) -> dict[str, Tensor]:
        """{target name: the bits from before its first change}, of all that were written to."""
        first = dict(self._base)
        for record in self._records:
            for name, staged in _dependent(record).items():
                first.setdefault(name, staged)
        backups = {name: staged.before for name, staged in first.items()}
        return {name: backup for name, backup in backups.items() if backup is not None}

    def undo_all(self) -> None:
        """Give every weight that was ever changed its bits from before the first change.

        If it breaks off, on whichever rank, every change is still on record, and asking again
        finishes it.
        """
        with self.lock:
            first: dict[str, Staged] = dict(self._base)
            alone = list(self._settled)
            for record in self._records:
                for name, staged in record.staged.items():
                    if staged.independent:
                        alone.append(staged)
                    else:
                        first.setdefault(name, staged)
            with Ranks.of(self._model()).agree("undo every change"):
                for staged in (*alone, *first.values()):
                    staged.undo()
            for one in (self._base, *(record.staged for record in self._records)):
                for staged in one.values():
                    staged.forget()
            self._records.clear()
            self._base.clear()
            self._settled.clear()
            free_spare_memory(self._live_model())

    def _undo(self, record: _Record, alone: bool) -> None:
        with self.lock:
            places = [place for place, r in enumerate(self._records) if r is record]
            if not places:
                return
            later = self._records[places[0] + 1 :]
            ranks = Ranks() if alone else Ranks.of(self._model())
            again = self._take_out(record, later, ranks)
            del self._records[places[0]]
            for other, name, staged in again:
                other.staged[name] = staged
            for staged in record.staged.values():
                staged.forget()  # who holds the entry still holds no backup
            self._forget_unheld()

    def _take_out(
        self, record: _Record, later: Sequence[_Record], ranks: Ranks
    ) -> list[tuple[_Record, str, Staged]]:
        """Put back what was before `record`, add what came later again, and say what was staged."""
        again: list[tuple[_Record, str, Staged]] = []
        covered = [
            (other, name)
            for other in later
            for name in _dependent(record).keys() & _dependent(other).keys()
        ]
        if not covered:
            _undo_together(list(record.staged.values()), ranks)
            return again
        model = self._live_model()
        with ranks.agree("stage the way back"):
            guards = [
                store_for(model, record.targets[name], record.apply).stage(
                    _nothing(record.updates[name])
                )
                for name in _dependent(record)
            ]
        undone: list[Staged] = []
        try:
            with ranks.agree("take the change out"):
                for staged in record.staged.values():
                    undone.append(staged)
                    staged.undo()
                for other, name in covered:
                    store = store_for(model, other.targets[name], other.apply)
                    staged = store.stage(other.updates[name])
                    staged.commit()
                    again.append((other, name, staged))
        except BaseException:
            for guard in guards:
                guard.undo()
            for staged in undone:
                if staged.independent:
                    staged.commit()
            raise
        return again

    def _forget_unheld(self) -> None:
        """Let go of what nobody can ask for: memory stays flat however many edits are made.

        Kept are the bits from before the first change of each weight (the base), the last change,
        and every change whose entry somebody holds, with the updates that came after it.
        """
        for record in self._records[:-1]:
            if not record.held:
                self._settle(record)
        while len(self._records) > 1 and not self._records[0].held:
            for name, staged in self._records.pop(0).staged.items():
                if self._base.setdefault(name, staged) is not staged:
                    staged.forget()
        covered = set(self._base)
        for record in self._records[:-1]:
            for name, staged in _dependent(record).items():
                if name in covered and not record.held:
                    staged.forget()
                covered.add(name)

    def _settle(self, record: _Record) -> None:
        """Let go of the part of `record` that no undo of another change needs."""
        for name, staged in list(record.staged.items()):
            if staged.independent:
                staged.forget()
                self._settled.append(staged)
                del record.staged[name], record.updates[name], record.targets[name]

    def _live_model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise UpdateError("the model that was edited no longer exists")
        return model


def _commit(staged: Sequence[Staged], ranks: Ranks) -> None:
    """Commit all; on any exception, an interrupt too, undo in reverse what may have begun.

    So does every rank when one of them could not commit.
    """
    begun: list[Staged] = []
    try:
        with ranks.agree("write the update"):
            for one in staged:
                begun.append(one)
                one.commit()
    except BaseException:
        for one in reversed(begun):
            one.undo()
        raise


def _undo_together(staged: Sequence[Staged], ranks: Ranks) -> None:
    """Undo all; on any exception, on whichever rank, write those again that were undone.

    Written again, a weight has the bits that it had: the same update on the same bits.
    """
    begun: list[Staged] = []
    try:
        with ranks.agree("undo the change"):
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


def _size(updates: Mapping[str, LowRankUpdate]) -> float:
    """A number that tells one set of updates from another."""
    return sum(float(update.largest_possible()) for update in updates.values())


def _dependent(record: _Record) -> dict[str, Staged]:
    """The part of `record` whose undo puts a weight back to what it was before."""
    return {name: one for name, one in record.staged.items() if not one.independent}


def _nothing(like: LowRankUpdate) -> LowRankUpdate:
    """An update without rows: staged, it is a guard that can restore the weight as it is now."""
    return LowRankUpdate(like.keys[:0], like.values[:0], torch.empty(0, dtype=torch.long))
