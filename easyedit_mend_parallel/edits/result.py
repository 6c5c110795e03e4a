"""The result of an edit: updates, losses and placements; it saves, checks and undoes the edit.

Knows how an edit is saved, and nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from easyedit_mend_parallel.edits.base import describe_base
from easyedit_mend_parallel.edits.saved import SavedEdit, saved_edit
from easyedit_mend_parallel.edits.scoping import about_below
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.evaluation.verification import Verdict
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.method.unreached import unreached
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.scope import ScopedUpdate
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate


@dataclass(frozen=True)
class EditResult:
    """The result of an edit. References names and low-rank rows, and no model.

    `requests` (R) are the requests of the edit, without repetitions. `updates` is {target name:
    update}, each on its target's device. `before` (R,) has each request's loss before the edit, on
    the device where it was computed. `losses_after` has the losses after the edit, or is None if
    they were not computed (`on_worse`, `losses_after`). `seconds` is the duration of the edit.
    `read_tokens` computes `tokens`; `hparams` are the options of the network. As long as the result
    is referenced, the edit can be undone by itself.
    """

    requests: list[Request]
    updates: dict[str, LowRankUpdate]
    placements: dict[str, Placement]
    before: Tensor
    losses_after: list[float] | None
    seconds: float
    entry: Entry | SequenceEntry
    targets: dict[str, Target]
    read_tokens: Callable[[], dict[str, list[str]]]
    hparams: dict[str, Any]
    ask: Callable[[nn.Module, Sequence[Request]], list[Verdict]]

    @cached_property
    def losses(self) -> list[float]:
        """Each request's mean negative log-likelihood before the edit. Waits for the device."""
        found: list[float] = self.before.tolist()
        return found

    @cached_property
    def tokens(self) -> dict[str, list[str]]:
        """{input of the model: texts}: the token of each row. Waits for the device."""
        return self.read_tokens()

    @property
    def unreached(self) -> list[str]:
        """The targets to which no token of the requests was sent: experts that are as they were."""
        return unreached(self.updates)

    @property
    def norms(self) -> dict[str, float]:
        """{target name: ‖ΔW‖ (Frobenius)}, computed at each access."""
        return {name: float(update.norm()) for name, update in self.updates.items()}

    def saved(self, *, whole: bool = False) -> SavedEdit:
        """This edit without its model, to write to a file or to apply to the same base again.

        Reads every edited weight as it was before the edit, for its checksum. A weight that is
        split between processes gets a checksum only with `whole`, which gathers the weights one by
        one; every process must then call this. Without `whole`, one process may call it alone.
        Raises EditError if the edit was rolled back or its model was deleted.
        """
        if not self.entry.applied:
            raise EditError(
                "the edit was rolled back, or its model is gone: save it while it is in the model"
            )
        about = {
            "base": describe_base(self.entry, self.targets, whole),
            "losses": self.losses,
            "losses_after": self.losses_after,
            "placements": {
                name: {"device": str(where.device), "kept": where.kept}
                for name, where in self.placements.items()
            },
            "tokens": self.tokens,
            "hparams": self.hparams,
            "seconds": self.seconds,
        }
        update = next(iter(self.updates.values()))
        if isinstance(update, ScopedUpdate) and update.scope is not None:
            about["scope"] = about_below(self.entry.model, update.scope, whole)
        return saved_edit(self.targets, self.updates, self.requests, about, self.entry)

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the edit to `path` (`load_edit` reads it), as `SavedEdit.write` does.

        Raises EditError if the edit was rolled back.
        """
        return self.saved().write(path, half=half)

    def verify(self) -> list[Verdict]:
        """A verdict on each request: the model's current answer, and whether the edit holds.

        Costs a forward pass. Raises UpdateError if the model was deleted.
        """
        return self.ask(self.entry.model, self.requests)

    def rollback(self) -> None:
        """Undo the edit: restores every weight bit for bit.

        Later edits stay in the model (see `Entry.undo`). A second call does nothing.
        """
        self.entry.undo()
