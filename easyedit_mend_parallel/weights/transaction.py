"""Commits or undoes several staged updates together: all of them, on every rank, or none.

Knows neither models nor stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from easyedit_mend_parallel.errors import MendParallelError
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores.protocol import Staged


def commit_all(staged: Sequence[Staged], ranks: Ranks) -> None:
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


def undo_all(staged: Sequence[Staged], ranks: Ranks) -> None:
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
