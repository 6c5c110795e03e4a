"""Keeps saved edits of one base model in a folder, in order, and which of them are applied.

The folder has one file for each edit and an index, which is written whole. A journal that was
applied to a model makes each change in the model too. Knows nothing of how an edit is computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn

from easyedit_mend_parallel.edits import journal_index as index
from easyedit_mend_parallel.edits.journal_index import JournalEntry, read_index, write_index
from easyedit_mend_parallel.edits.merging import merge_edits
from easyedit_mend_parallel.edits.replay import replay
from easyedit_mend_parallel.edits.saved import SavedEdit, load_edit
from easyedit_mend_parallel.edits.scoping import Scoping
from easyedit_mend_parallel.edits.solving import solved
from easyedit_mend_parallel.edits.squashing import squash
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files.interrupts import interrupts_held
from easyedit_mend_parallel.method.preserved_cache import read_inputs, write_inputs
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.ranks import Ranks

if TYPE_CHECKING:
    from easyedit_mend_parallel.edits.result import EditResult

PRESERVED = "preserved.safetensors"
"""File with the inputs of the base's targets for preserved text, for edits that are solved
together."""
Undone: TypeAlias = Literal["restored", "recomputed", "marked"]
"""How an edit was removed. `restored`: no later edit changed its weights, and they have the bits
from before the edit (or its rows were removed from the outputs). `recomputed`: the bits from before
the edit were restored and the later updates added again in order; nothing of the edit is left, but
the sums were rounded anew. `marked`: the journal has no model; only the index was changed."""


class Journal:
    """The journal in `folder`, or an empty one if the folder has none. Changes no model.

    `apply_to` puts the applied edits onto a model. From then on, every change of the journal also
    changes that model.

    If the model is split between processes, every rank opens the journal and makes the same calls.
    The first rank writes, and all ranks must see the folder. If one rank fails, all raise, and
    journal and model are unchanged.

    Raises EditError for a folder with other content, and for a damaged index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._revision, self._entries = read_index(self.folder)
        self._model: nn.Module | None = None
        self._ranks = Ranks()
        self._lock = index.FolderLock(self.folder)
        self._apply = "weight"
        self._scoping: Scoping | None = None
        self._hold = True
        self._live: dict[int, Entry | SequenceEntry] = {}

    @interrupts_held()
    def apply_to(
        self,
        model: nn.Module,
        *,
        apply: str = "weight",
        hold: bool = True,
        scoping: Scoping | None = None,
        progress: Callable[[int], None] = lambda _number: None,
    ) -> Journal:
        """Put every edit that is marked as applied onto `model`, in order, all or none.

        The model must be the base, on any placement. `apply` and `scoping` are as in
        `SavedEdit.apply`. Edits that have rows are solved together and written once. `progress` is
        called with the number of each edit after it. The journal references the model as long as
        the journal exists. Each edit without rows keeps a backup of its weights, so that it can be
        undone. With `hold=False` there are no backups: memory stays flat over any number of edits,
        but they can no longer be undone one by one. Returns the journal.

        Raises EditError if the model is another base.
        """
        if self._model is not None:
            raise EditError(f"the journal {self.folder} is open with a model already")
        with Ranks.of(model).agree("read the journal"):
            self._revision, self._entries = read_index(self.folder)
        self._apply, self._hold, self._scoping = apply, hold, scoping
        self._attach(model, progress)
        return self

    @property
    def entries(self) -> list[JournalEntry]:
        """All edits, in the order in which they are applied to a model."""
        return list(self._entries)

    @property
    def applied(self) -> list[int]:
        """The numbers of the edits that are applied, in order."""
        return [entry.number for entry in self._entries if entry.applied]

    def edit(self, number: int) -> SavedEdit:
        """The edit with this number. Raises EditError if there is none or its file is damaged."""
        return load_edit(self.folder / self._entry(number).file)

    def combined(self) -> SavedEdit:
        """All applied edits as one: those with rows solved together, the others added.

        Raises EditError if none is applied, or if a file that solving needs is not in the folder.
        """
        return self._combined(self.applied)

    def _combined(self, numbers: Sequence[int]) -> SavedEdit:
        edits = [self.edit(number) for number in numbers]
        with_rows = [edit for edit in edits if edit.solve_rows is not None]
        if len(with_rows) < 2:
            return merge_edits(edits)
        targets = list(with_rows[0].targets.values())
        one = solved(with_rows, read_inputs(self.folder / PRESERVED, targets))
        return merge_edits([one, *(edit for edit in edits if edit.solve_rows is None)])

    @interrupts_held()
    def add(self, result: EditResult, *, half: bool = False) -> JournalEntry:
        """Save an edit that was just made in the journal's model; `half` as in `SavedEdit.write`.

        The journal's model is that of `apply_to`, or the model of the first result. Raises
        EditError for an edit of another model or one that was rolled back.
        """
        model = result.entry.model
        if self._model is None and not self.applied:
            self.apply_to(model)
        if model is not self._model:
            raise EditError(
                f"the edit is in another model than the journal {self.folder} was opened with: "
                "open it with the model before that is edited"
            )
        with self._ranks.agree("read the edited weights"):
            edit = result.saved(whole=True)
        self._keep_preserved(result.entry)
        with self._locked(), self._kept(edit, half=half) as entry:
            self._write([*self._entries, entry])
        if self._hold:
            self._live[entry.number] = result.entry
        return entry

    @interrupts_held()
    def undo(self, number: int | None = None) -> Undone:
        """Undo edit `number` (default: the last applied one). Returns how that was done.

        The file stays, and `reapply` applies the edit again. Raises EditError if the edit is not
        applied. After any exception, journal and model are unchanged.
        """
        if number is None:
            if not self.applied:
                raise EditError(f"no edit is applied in {self.folder}")
            number = self.applied[-1]
        entry = self._entry(number)
        if not entry.applied:
            raise EditError(f"edit {number} is not applied")
        self._refuse_unheld()
        before, live = self._entries, self._live.get(number)
        how: Undone = "marked"
        if live is not None:
            how = "restored" if live.is_last else "recomputed"
        try:
            self._write([replace(one, applied=one.applied and one is not entry) for one in before])
            if live is not None:
                live.undo()
        except BaseException:
            if self._entries != before and (live is None or live.applied):
                self._write(before)
            raise
        self._live.pop(number, None)
        return how

    @interrupts_held()
    def reapply(self, number: int) -> None:
        """Apply an undone edit again, as the last one. Raises EditError if it is applied."""
        entry = self._entry(number)
        if entry.applied:
            raise EditError(f"edit {number} is applied already")
        if entry.squashed_into is not None and self._entry(entry.squashed_into).applied:
            raise EditError(f"edit {number} is part of edit {entry.squashed_into}: undo that first")
        others = [one for one in self._entries if one is not entry]
        again = replace(entry, applied=True, squashed_into=None)
        if self._model is None:
            self._write([*others, again])
            return
        with self._ranks.agree("read the edit"):
            edit = self.edit(number)
        applied = edit.apply(self._model, self._apply, scoping=self._scoping)
        try:
            self._write([*others, again])
        except BaseException:
            applied.rollback()
            raise
        if self._hold:
            self._live[number] = applied.entry

    @interrupts_held()
    def squash(self, rank: int, numbers: Sequence[int] | None = None) -> JournalEntry:
        """Replace edits `numbers` (default: all applied ones) by one edit, which becomes the last.

        It has at most `rank` rows for each target; `edits.squashing.squash` measures its error.

        If the journal has a model, the edits are replaced there too. Raises EditError if one of the
        edits is not applied, or if fewer than two are named.
        """
        self._refuse_unheld()
        chosen = self.applied if numbers is None else sorted(set(numbers))
        not_applied = [number for number in chosen if not self._entry(number).applied]
        if not_applied or len(chosen) < 2:
            raise EditError(
                f"{', '.join(map(str, not_applied)) or 'fewer than two'} of the edits to squash "
                f"{'is' if len(not_applied) == 1 else 'are'} applied"
            )
        with self._ranks.agree("squash the edits"):
            edit = squash(self._combined(chosen), rank)
        edit.about["squashed"]["numbers"] = chosen
        with self._locked(), self._kept(edit) as new:
            gone = [one for one in self._entries if one.number in chosen]
            out = {one: replace(one, applied=False, squashed_into=new.number) for one in gone}
            self._exchange([*(out.get(one, one) for one in self._entries), new])
            return self._entry(new.number)

    def _refuse_unheld(self) -> None:
        if self._model is not None and not self._hold:
            raise EditError(
                "this journal was applied with hold=False, so its edits cannot be undone in the "
                "model: open it without the model, or apply it with hold=True"
            )

    def _attach(self, model: nn.Module, progress: Callable[[int], None]) -> None:
        ranks = Ranks.of(model)
        code = zlib.crc32(str((self._revision, self._entries)).encode())
        if not ranks.same(code):  # compared before any rank writes
            raise EditError(
                f"the ranks that hold this model see different journals in {self.folder}: give "
                "every rank the same folder, on a file system that all of them see"
            )
        if not self._hold and not Ledger.of(model).is_empty:
            raise EditError(
                "the model already has edits, and with hold=False they cannot be told from the "
                "journal's: apply the journal before the model is edited"
            )
        self._live = self._put_on(model, self.applied, progress)
        self._model, self._ranks = model, ranks

    def _put_on(
        self,
        model: nn.Module,
        numbers: Sequence[int],
        progress: Callable[[int], None] = lambda _number: None,
    ) -> dict[int, Entry | SequenceEntry]:
        """Put the edits of these numbers onto `model`, in order, all or none."""
        return replay(
            model,
            numbers,
            self.edit,
            apply=self._apply,
            scoping=self._scoping,
            hold=self._hold,
            progress=progress,
        )

    def _exchange(self, entries: list[JournalEntry]) -> None:
        """Make `entries` the content of the index, and apply the same change to the model."""
        before, former = self._entries, self.applied
        self._write(entries)
        if self._model is None:
            return
        with Ledger.of(self._model).lock:
            try:
                for number in reversed(former):
                    self._live[number].undo()
                self._live = self._put_on(self._model, self.applied)
            except BaseException:
                self._write(before)
                for number in reversed(former):
                    self._live[number].undo()
                # The same updates on the same bits give the bits that were there before.
                self._live = {number: self._live[number].again() for number in former}
                raise

    def _keep_preserved(self, entry: Entry | SequenceEntry) -> None:
        """Save the inputs of preserved text, once. Solving the edits without a model needs them."""
        inputs = entry.sequence.preserved if isinstance(entry, SequenceEntry) else None
        if inputs is not None and not (self.folder / PRESERVED).exists():
            if not self._revision:
                self._write(self._entries)
            with self._ranks.agree("write the inputs of preserved text"):
                if self._ranks.is_first:
                    write_inputs(self.folder / PRESERVED, inputs)

    @contextmanager
    def _kept(self, edit: SavedEdit, *, half: bool = False) -> Iterator[JournalEntry]:
        """Write the edit's file. It is part of the journal only when the index names it, and is
        removed if it does not when the context ends with an exception."""
        if not self._revision:
            self._write(self._entries)
        number = max((entry.number for entry in self._entries), default=0) + 1
        added = datetime.now(timezone.utc).isoformat(timespec="seconds")
        new = JournalEntry(number, f"{number:04}.safetensors", True, added)

        def unnamed() -> bool:
            return self._ranks.is_first and new not in self._entries

        with index.dropped_if_broken(self.folder / new.file, unnamed):
            with self._ranks.agree("write the edit"):
                if self._ranks.is_first:
                    edit.write(self.folder / new.file, half=half)
            with self._ranks.agree("find the edit that the first rank wrote"):
                if not (self.folder / new.file).exists():
                    raise EditError(
                        f"{self.folder} is not the folder that the first rank wrote to: put it on "
                        "a file system that all ranks see"
                    )
            yield new

    def _locked(self) -> AbstractContextManager[None]:
        return self._lock.held(self._revision, needed=self._ranks.is_first)

    def _entry(self, number: int) -> JournalEntry:
        for entry in self._entries:
            if entry.number == number:
                return entry
        known = ", ".join(str(entry.number) for entry in self._entries) or "none"
        raise EditError(f"there is no edit {number} in {self.folder}; its edits: {known}")

    def _write(self, entries: list[JournalEntry]) -> None:
        try:
            with self._ranks.agree("write the journal"), self._locked():
                if self._ranks.is_first:
                    write_index(self.folder, self._revision, entries)
            self._revision, self._entries = self._revision + 1, entries
        except BaseException:
            with suppress(EditError):  # another process's, or the new one if it was written
                now = read_index(self.folder)
                if now == (self._revision + 1, entries):
                    self._revision, self._entries = now
            raise
