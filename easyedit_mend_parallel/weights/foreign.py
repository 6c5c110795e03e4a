"""Detects whether weights that a change wrote were changed since by other code.

Reads weights where they are stored and writes none. Knows nothing of how updates are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import kept_weight
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate
from easyedit_mend_parallel.weights.whole import is_distributed


class WrittenBits:
    """Remembers the weights that a change wrote, and raises if they have other bits later.

    PyTorch counts the in-place changes of a tensor. The bits are compared only if that count or the
    tensor itself has changed. Shards of a tensor-parallel weight and weights that were cast to
    another dtype are not compared.
    """

    def __init__(self) -> None:
        self._versions: dict[str, Any] = {}
        self._state: tuple[int, ...] = ()

    def note(self, model: nn.Module, targets: Sequence[Target]) -> None:
        """Remember the present weights. Must be called right after the change was written."""
        self._versions = {target.name: _version(model, target.name) for target in targets}
        self._state = Ledger.of(model).state

    @torch.no_grad()
    def refuse_changed(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        change: Entry,
        updates: Mapping[str, LowRankUpdate],
    ) -> None:
        """Raise UpdateError if a weight is not its base plus its update. Changes nothing.

        Weights that the ledger has changed since are not compared.
        """
        if Ledger.of(model).state != self._state:
            return
        before = change.before()
        others = [
            target.name
            for target in targets
            if target.name in before
            and _version(model, target.name) != self._versions.get(target.name)
            and not _is_written(model, target, before[target.name], updates[target.name])
        ]
        if others:
            raise UpdateError(
                f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} other bits than the "
                "edits of this model left there: something else changed them since the last edit. "
                "Nothing was written. Undo that change and edit again; or keep it, and call "
                "rollback_all only if its loss does not matter"
            )


def _version(model: nn.Module, name: str) -> Any:
    """The weight's address and PyTorch's count of its changes: one differs after a change."""
    weight = kept_weight(model, name)
    return None if weight is None else (weight.data_ptr(), weight._version)


def _is_written(model: nn.Module, target: Target, base: Tensor, update: LowRankUpdate) -> bool:
    now = kept_weight(model, target.name)
    if now is None or is_distributed(now) or now.dtype != base.dtype or now.shape != base.shape:
        return True
    expected = torch.empty_like(base)
    update.write(expected, target.transposed, base=base)
    return bool(torch.equal(expected.to(now.device), now))
