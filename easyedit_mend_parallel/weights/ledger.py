"""The ledger: changes a model wholly or not at all, and undoes each change to the bit.

No other code changes a model.
There is one ledger for each model, shared by all editors. It references names, updates and backups,
and no model. Knows nothing of how updates are made.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.files.interrupts import interrupts_held, made_whole
from easyedit_mend_parallel.weights.adapters import MergedAdapters
from easyedit_mend_parallel.weights.change import Entry, Put, Record, Rewritten, covers, dependent
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores import Staged, free_spare_memory, store_for
from easyedit_mend_parallel.weights.take_out import guards_of, take_out
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.transaction import commit_all, twice, undo_each
from easyedit_mend_parallel.weights.update import LowRankUpdate, refuse_non_finite, size_of

SAME_SIZE = 1e-2
"""Relative difference up to which the sizes of two ranks' updates count as equal. Kernels may round
differently; other requests or archives differ by more."""


class Ledger:
    """All changes of one model, oldest first. `Ledger.of(model)` returns the model's ledger."""

    _of_model: ClassVar[weakref.WeakKeyDictionary[nn.Module, Ledger]] = weakref.WeakKeyDictionary()
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: nn.Module) -> None:
        self.lock = threading.RLock()
        """Held while the model is changed; an editor holds it for its whole edit."""
        self._model = weakref.ref(model)
        self._records: list[Record] = []
        self._base: dict[str, Staged] = {}
        self._adapters = MergedAdapters()
        self._made = 0
        self._settled: list[Staged] = []
        """Independent staged updates (`Staged.independent`) that only `undo_all` can still undo."""

    @classmethod
    @interrupts_held()
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
        *,
        keep_rows: bool = True,
    ) -> Entry:
        """Add `updates` ({target name: update}) to the model: all of them, or none.

        An update without rows leaves its weight alone. `apply` is as in `WeightPlace`. Raises
        UpdateError (for an update that is not finite or that a store cannot write) or
        PlacementError; every weight is then unchanged. Without `keep_rows` the change can be
        undone, but not made `again`: the rows of independent updates (`Staged.independent`) are
        then only in the store. Afterwards changes whose entries are not referenced are forgotten:
        they stay in the model, and only `undo_all` can undo them.
        """
        with self.lock:
            model = self._live_model()
            ranks = Ranks.of(model)
            reached = {name for name, update in updates.items() if len(update.keys)}
            by_name = {target.name: target for target in targets if target.name in reached}
            with ranks.agree("stage the update"):
                refuse_non_finite(updates)
                staged = {
                    name: store_for(model, target, apply).stage(updates[name])
                    for name, target in by_name.items()
                }
                self._adapters.note(model, staged)
                size = 0.0 if ranks.alone else size_of(updates)
            if not ranks.same(size, tolerance=SAME_SIZE):
                raise UpdateError(
                    "the ranks that hold this model computed different updates; nothing was "
                    "written. Give every rank the same requests and the same archive"
                )
            record = Record(by_name, dict(updates), staged, apply, self._made + 1)

            def take_back(_entry: Entry) -> None:
                if ranks.alone:
                    self._undo(record, alone=True)

            return made_whole(lambda: self._committed(record, ranks, keep_rows), take_back)

    def _committed(self, record: Record, ranks: Ranks, keep_rows: bool) -> Entry:
        """Write what was staged for `record`, and note it as the last change."""
        entry = Entry(self, record)
        record.entry = weakref.ref(entry)
        try:
            commit_all(list(record.staged.values()), ranks)
            self._made += 1
            self._records.append(record)
            self._forget_unheld()
            if not keep_rows:
                record.let_rows_go()
            return entry
        except BaseException:
            self._records[:] = [one for one in self._records if one is not record]
            for one in reversed(record.staged.values()):
                one.undo()
            raise

    @contextmanager
    def without(self, entry: Entry | None) -> Iterator[Put]:
        """While the context lasts, the model is without the change of `entry`, and locked.

        The yielded object adds another change instead, or leaves the change out permanently. If
        neither is called, or an exception leaves the context, that other change comes out, the
        model is restored to the bit, and `entry` is applied again. Later changes of the same
        weights stay in the model.
        """
        with self.lock:
            record = None if entry is None else entry._record
            if record is None or not self._has(record):
                with Put(self) as put:
                    yield put
                    return
            index = next(n for n, one in enumerate(self._records) if one is record)
            later = self._records[index + 1 :]
            ranks = Ranks.of(self._model())
            with ranks.agree("stage the way back"):
                guards = guards_of(self._live_model(), record) if covers(record, later) else {}
            done, former, again = False, Rewritten(), Rewritten()
            try:
                with interrupts_held():
                    take_out(self._model(), record, later, ranks, self._adapters, again)
                    former += [(other, name, other.staged[name]) for other, name, _ in again]
                    for other, name, staged in again:
                        other.staged[name] = staged
                    del self._records[index]
                with Put(self) as put:
                    yield put
                    done = put.is_done
            finally:
                if done:
                    for staged in record.staged.values():
                        staged.forget()
                else:
                    self._put_back(record, index, former, guards, ranks)

    @interrupts_held()
    def _put_back(
        self,
        record: Record,
        index: int,
        former: Rewritten,
        guards: Mapping[str, Staged],
        ranks: Ranks,
    ) -> None:
        """Restore the model from before `record` was taken out, and add the record again.

        The same update on the same bits gives the same result. If later changes cover its weights,
        `guards` have the bits.
        """
        if not self._has(record):
            self._records.insert(index, record)
        for other, name, staged in former:
            other.staged[name] = staged
        with ranks.agree("put the change back"):
            for name, staged in record.staged.items():
                if name in guards:
                    guards[name].undo()
                else:
                    staged.undo()
                    staged.commit()

    @property
    def state(self) -> tuple[int, ...]:
        """Identifies the changes in the model: equal for equal changes; () if there is none."""
        forgotten = (-self._made,) if self._base or self._settled else ()
        return (*forgotten, *(record.serial for record in self._records))

    @property
    def is_empty(self) -> bool:
        """Whether no change is in the model."""
        return not (self._records or self._base or self._settled)

    def before(self) -> dict[str, Tensor]:
        """{target name: the bits before its first change}, for every weight that was written."""
        first = dict(self._base)
        for record in self._records:
            for name, staged in dependent(record).items():
                first.setdefault(name, staged)
        backups = {name: staged.before for name, staged in first.items()}
        return {name: backup for name, backup in backups.items() if backup is not None}

    @interrupts_held()
    def undo_all(self) -> None:
        """Restore every weight to its bits from before its first change.

        In one process, what breaks off is done again before the exception is raised. If it fails
        again, or on any rank, every change is still recorded, and another call completes it.
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
            ranks = Ranks.of(self._model())
            with ranks.agree("undo every change"):
                self._adapters.refuse_other(self._model(), first)
                if ranks.alone:
                    twice(lambda: self._all_out([*alone, *first.values()]))
                else:
                    undo_each([*alone, *first.values()])
            self._forget_all()
            free_spare_memory(self._live_model())

    def _all_out(self, every: Sequence[Staged]) -> None:
        undo_each(every)
        self._forget_all()

    def _forget_all(self) -> None:
        every = [self._base, *(record.staged for record in self._records)]
        undone = [staged for one in every for staged in one.values()]
        self._records.clear()
        self._base.clear()
        self._settled.clear()
        for staged in undone:
            staged.forget()

    @interrupts_held()
    def _undo(self, record: Record, alone: bool) -> None:
        with self.lock:
            index = next((n for n, r in enumerate(self._records) if r is record), None)
            if index is None:
                return
            later = self._records[index + 1 :]
            ranks = Ranks() if alone else Ranks.of(self._model())
            again = Rewritten()
            note = partial(twice, partial(self._note_out, record, again))
            is_in = partial(self._has, record)
            take_out(self._model(), record, later, ranks, self._adapters, again, note, is_in)

    def _note_out(self, record: Record, again: Rewritten) -> None:
        """Note that `record` is out of the model, and what was written `again` for later ones."""
        for other, name, staged in again:
            other.staged[name] = staged
        self._records[:] = [one for one in self._records if one is not record]
        for staged in record.staged.values():
            staged.forget()  # a referenced entry then keeps no backup
        self._forget_unheld()

    def _has(self, record: Record) -> bool:
        return any(one is record for one in self._records)

    def _forget_unheld(self) -> None:
        """Forget changes that can no longer be undone alone, so that memory stays flat.

        It keeps the bits from before the first change of each weight (the base), the last change,
        and every change whose entry is referenced, with the updates after it.
        """
        for record in self._records[:-1]:
            if not record.held:
                self._settle(record)
        while len(self._records) > 1 and not self._records[0].held:
            first = self._records[0].staged
            for name, staged in first.items():
                self._base.setdefault(name, staged)
            del self._records[0]  # its bits are kept by now
            for name, staged in first.items():
                if self._base[name] is not staged:
                    staged.forget()
        covered = set(self._base)
        for record in self._records[:-1]:
            for name, staged in dependent(record).items():
                if name in covered and not record.held:
                    staged.forget()
                covered.add(name)

    def _settle(self, record: Record) -> None:
        """Forget the part of `record` that no undo of another change needs."""
        for name, staged in list(record.staged.items()):
            if staged.independent:
                staged.forget()
                self._settled.append(staged)
                del record.staged[name], record.targets[name]
                record.updates.pop(name, None)

    def _live_model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise UpdateError("the model that was edited no longer exists")
        return model
