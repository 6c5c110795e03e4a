"""Puts saved edits onto a model one after another, as a journal lists them: all of them or none.

Knows how one edit is applied, and nothing of folders or of an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from easyedit_mend_parallel.edits.saved import AppliedEdit, SavedEdit, applied_edits
from easyedit_mend_parallel.edits.scoping import Scoping
from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.ranks import Ranks


def replay(
    model: nn.Module,
    numbers: Sequence[int],
    read: Callable[[int], SavedEdit],
    *,
    apply: str,
    scoping: Scoping | None,
    hold: bool,
    progress: Callable[[int], None],
) -> dict[int, Entry | SequenceEntry]:
    """Put the edits of `numbers` onto `model` in order, and return {number: its ledger entry}.

    `read` loads the edit of a number. `apply` and `scoping` are those of `SavedEdit.apply`.
    Consecutive edits that are solved together are written once. The base is compared once for each
    weight. `progress` is called with a number after its edit is in the model. With `hold=False` no
    entry is kept, so the result is empty and the edits cannot be undone one by one.

    Raises what `read` and `SavedEdit.apply` raise. The model is then as it was before; with
    `hold=False` every edit of it is undone.
    """
    live: dict[int, Entry | SequenceEntry] = {}
    put: dict[int, AppliedEdit] = {}
    compared: dict[str, Any] = {}
    ledger, ranks = Ledger.of(model), Ranks.of(model)
    with ledger.lock:
        before = ledger.state
        try:
            for group in _groups(numbers, read, ranks):
                bases = {
                    name: about.get("base")
                    for edit in group.values()
                    for name, about in edit.about["base"]["weights"].items()
                }
                check = not bases.items() <= compared.items()  # each weight is summed once
                put = applied_edits(group, model, apply, check=check, scoping=scoping)
                live |= {number: one.entry for number, one in put.items()}
                compared |= bases
                with ranks.agree("report progress"), interrupts_pass():
                    for number in group:
                        progress(number)
                if not hold:
                    live = {}
            return live
        except BaseException:
            live |= {number: one.entry for number, one in put.items()}
            for entry in reversed(live.values()):
                entry.undo()
            if not hold and ledger.state != before:
                ledger.undo_all()
            raise


def _groups(
    numbers: Sequence[int], read: Callable[[int], SavedEdit], ranks: Ranks
) -> Iterator[dict[int, SavedEdit]]:
    """The edits in order. Consecutive ones that are solved together are in one group."""
    group: dict[int, SavedEdit] = {}
    for number in numbers:
        with ranks.agree("read the edit"):
            edit = read(number)
        last = next(reversed(group.values()), None)
        if last is not None and (edit.options is None or edit.options != last.options):
            yield group
            group = {}
        group[number] = edit
    if group:
        yield group
