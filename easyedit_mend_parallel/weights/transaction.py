"""Commits or undoes several staged updates together: all of them, on every rank, or none.

Knows neither models nor stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from easyedit_mend_parallel.errors import MendParallelError
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores.protocol import Staged


def commit_all(staged: Sequence[Staged], ranks: Ranks) -> None:
    """Commit all. After any exception or interrupt, undo in reverse those that may have begun.

    If one rank cannot commit, every rank undoes its own.
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


def undo_all(
    staged: Sequence[Staged],
    ranks: Ranks,
    note: Callable[[], None],
    is_noted_as_in: Callable[[], bool],
) -> None:
    """Undo all, and `note` it. After an exception on any rank, commit those again that were undone,
    unless they are noted as out.

    The same update on the same bits gives the bits from before.
    """
    begun: list[Staged] = []
    try:
        with ranks.agree("undo the change"):
            for one in staged:
                begun.append(one)
                one.undo()
        note()
    except BaseException:
        for one in reversed(begun if is_noted_as_in() else []):
            # One that could not be undone is unchanged, and cannot be undone here either.
            with suppress(MendParallelError):
                one.undo()
                one.commit()
        raise


def twice(step: Callable[[], None]) -> None:
    """Do `step`, which may be repeated. If it breaks off, do it again before the exception is
    raised, so that it is not left half done."""
    try:
        step()
    except BaseException:
        with suppress(Exception):  # the first one says more
            step()
        raise


def undo_each(every: Sequence[Staged]) -> None:
    """Undo all, one after the other."""
    for staged in every:
        staged.undo()
