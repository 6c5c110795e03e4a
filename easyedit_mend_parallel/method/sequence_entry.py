"""The handle of one edit in a sequence, with which the edit can be undone while it is referenced.

Holds no model: a deleted model is freed.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from easyedit_mend_parallel.method.growing_system import SolveRows, SystemOptions
from easyedit_mend_parallel.method.sequence import EditSequence
from easyedit_mend_parallel.method.sequence_edit import MakeRows, SequenceEdit


class SequenceEntry:
    """A handle on one edit of a sequence, as `Entry` is on a change of its own."""

    def __init__(
        self,
        sequence: EditSequence,
        edit: SequenceEdit,
        make: weakref.WeakMethod[MakeRows] | None = None,
    ) -> None:
        self.sequence, self.edit = sequence, edit
        self._make = make

    @property
    def applied(self) -> bool:
        """Whether the edit, or a part of it that was not replaced, is in the model now."""
        return self.sequence.is_alive and self.sequence.holds(self.edit)

    @property
    def is_last(self) -> bool:
        """Whether `undo` gives the bits from before the edit, and solves nothing again."""
        return not self.applied or self.sequence.is_last(self.edit)

    @property
    def model(self) -> nn.Module:
        """The model that was edited. Raises UpdateError once it is gone."""
        return self.sequence.model

    def undo(self, *, alone: bool = False) -> None:
        """Take the edit out and solve the others again; does nothing if it is out already.

        Every rank that holds a part of the model has to call it, with `alone` too.
        """
        if self.sequence.is_alive:
            self.sequence.remove([self.edit])

    def accept_bits(self) -> None:
        """Take the weights' present bits for those that the edits left there: `undo` then does not
        refuse them."""
        self.sequence.accept_bits()

    def again(self) -> SequenceEntry:
        """Put the same edit back in, as the last one, after `undo`."""
        self.sequence.restore([self.edit])
        return self

    def rows(self) -> dict[str, SolveRows] | None:
        """{target name: rows} that solving the edit with others needs; None where they are gone."""
        make = None if self._make is None else self._make()
        return self.sequence.rows_of(self.edit, make) if self.sequence.is_alive else None

    @property
    def options(self) -> SystemOptions:
        return self.sequence.options

    def before(self) -> dict[str, Tensor]:
        """{target name: the bits that the weight would have without the edit}."""
        return self.sequence.before(self.edit) if self.sequence.is_alive else {}
