"""One edit of a sequence: its requests, its own update, and its rows in the systems.

Knows no model and no ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.growing_system import SolveRows
from easyedit_mend_parallel.method.mend import OwnRows, Proposal
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

Updates: TypeAlias = dict[str, LowRankUpdate]


MakeRows: TypeAlias = Callable[[Batch, Sequence[Request]], OwnRows]
"""What the requests of a batch ask for by themselves, on the model without edits."""


@dataclass(frozen=True)
class Making:
    """How an editor makes what a sequence needs of a batch, on the model without its edits.

    `alone` proposes the batch as the only edit; `rows` makes its rows; `preserved` gives the inputs
    of preserved text, which the systems begin with.
    """

    alone: Callable[[Batch, Sequence[Request]], Proposal]
    rows: MakeRows
    preserved: Callable[[], PreservedInputs | None]


@dataclass(eq=False)
class SequenceEdit:
    """One edit of a sequence, which may be of several requests.

    `alone` is its update as the only edit (MEND's own for one request); None where that was never
    made. `rows` {target name: rows} are what it brings into the systems, made from `batch` when
    they are first needed. `origin` is the edit that this one is, less some of its requests.
    """

    requests: list[Request]
    batch: Batch | None = None
    alone: Updates | None = None
    rows: dict[str, SolveRows] | None = None
    origin: SequenceEdit | None = None
    replaced: list[tuple[int, SequenceEdit]] = field(default_factory=list)
    """What this edit took the place of, with its index then: it comes back when this is undone."""

    def is_of(self, edit: SequenceEdit) -> bool:
        """Whether this is `edit`, or what is left of it."""
        return (self.origin or self) is (edit.origin or edit)

    def without(self, numbers: Sequence[int]) -> SequenceEdit:
        """This edit less the requests of these numbers; its rows have to be there."""
        assert self.rows is not None
        kept = [number for number in range(len(self.requests)) if number not in numbers]
        return SequenceEdit(
            [self.requests[number] for number in kept],
            rows={name: rows.of_requests(kept) for name, rows in self.rows.items()},
            origin=self.origin or self,
            replaced=self.replaced,
        )

    @property
    def nbytes(self) -> int:
        """The memory of its rows and of its update as the only edit."""
        of_alone = sum(one.keys.nbytes + one.values.nbytes for one in (self.alone or {}).values())
        return of_alone + sum(rows.nbytes for rows in (self.rows or {}).values())


def same_edits(one: Sequence[SequenceEdit], other: Sequence[SequenceEdit]) -> bool:
    """Whether both are the same edits in the same order."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def gone(
    before: Sequence[SequenceEdit], after: Sequence[SequenceEdit]
) -> list[tuple[int, SequenceEdit]]:
    """The edits of `before` that are not, or not whole, in `after`, with their indices."""
    left = {id(one) for one in after}
    return [(index, one) for index, one in enumerate(before) if id(one) not in left]


def without(edits: Sequence[SequenceEdit], gone: Sequence[SequenceEdit]) -> list[SequenceEdit]:
    """`edits` without those that are `gone`, and with what these had replaced."""
    taken = {id(one) for one in gone}
    left = [edit for edit in edits if id(edit) not in taken]
    for index, old in sorted(
        (pair for one in gone for pair in one.replaced), key=lambda pair: pair[0]
    ):
        if id(old) in taken:
            continue
        place = next((n for n, one in enumerate(left) if one.is_of(old)), None)
        if place is None:
            left.insert(index, old)
        else:
            left[place] = old
    return left


def not_replaced(
    edits: Sequence[SequenceEdit], requests: Sequence[Request], settled: Sequence[SequenceEdit]
) -> list[SequenceEdit]:
    """`edits` without those requests whose prompt `requests` ask for anew, which are named.

    Raises UpdateError for a prompt of a `settled` edit.
    """
    asked = {request.prompt: request for request in requests}
    for old in (one for edit in settled for one in edit.requests):
        if old.prompt in asked:
            raise UpdateError(
                f"{old.prompt!r} was edited before, and that edit was settled to stay within "
                "sequence_memory, so it cannot be replaced. Nothing was written. Raise "
                "sequence_memory before editing, or take all edits out with rollback_all"
            )
    left = []
    for edit in edits:
        numbers = [n for n, one in enumerate(edit.requests) if one.prompt in asked]
        for old in (edit.requests[number] for number in numbers):
            log.warning(
                "%r was edited before (to %r): the new edit (to %r) replaces that one",
                old.prompt,
                old.target_new,
                asked[old.prompt].target_new,
            )
        if len(numbers) < len(edit.requests):
            left.append(edit.without(numbers) if numbers else edit)
    return left
