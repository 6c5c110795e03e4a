"""Takes one change out of a model while later ones of the same weights stay in it.

Knows the changes and their stores. The ledger notes what is in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.adapters import MergedAdapters
from easyedit_mend_parallel.weights.change import Record, Rewritten, dependent
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores import Staged, store_for
from easyedit_mend_parallel.weights.transaction import undo_all
from easyedit_mend_parallel.weights.update import LowRankUpdate


def take_out(
    model: nn.Module | None,
    record: Record,
    later: Sequence[Record],
    ranks: Ranks,
    adapters: MergedAdapters,
    again: Rewritten,
    note: Callable[[], None] = lambda: None,
    is_in: Callable[[], bool] = lambda: True,
) -> None:
    """Restore the bits before `record`, add the updates of `later` changes `again`, and `note` it.

    After an exception the model is as it was before, unless the change was noted: then `is_in` is
    false, and it is out. Raises UpdateError if `again` needs a model that no longer exists.
    """
    with ranks.agree("look for adapters"):
        adapters.refuse_other(model, record.staged)
    covered = [
        (other, name)
        for other in later
        for name in dependent(record).keys() & dependent(other).keys()
    ]
    if not covered:
        undo_all(list(record.staged.values()), ranks, note, is_in)
        return
    if model is None:
        raise UpdateError("the model that was edited no longer exists")
    with ranks.agree("stage the way back"):
        guards = guards_of(model, record)
    undone: list[Staged] = []
    try:
        with ranks.agree("take the change out"):
            for staged in record.staged.values():
                undone.append(staged)
                staged.undo()
            for other, name in covered:
                store = store_for(model, other.targets[name], other.apply)
                staged = store.stage(other.updates[name])
                adapters.note(model, {name: staged})
                staged.commit()
                again.append((other, name, staged))
        note()
    except BaseException:
        if is_in():
            for guard in guards.values():
                guard.undo()
            for staged in undone:
                if staged.independent:
                    staged.commit()
        raise


def guards_of(model: nn.Module, record: Record) -> dict[str, Staged]:
    """Staged updates without rows, whose undo restores the present bits of `record`'s weights."""
    return {
        name: store_for(model, record.targets[name], record.apply).stage(
            _nothing(record.updates[name])
        )
        for name in dependent(record)
    }


def _nothing(like: LowRankUpdate) -> LowRankUpdate:
    return LowRankUpdate(like.keys[:0], like.values[:0], torch.empty(0, dtype=torch.long))
