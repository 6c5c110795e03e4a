"""What an edit did, as the caller holds it: rows, losses, places, and the way back.

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
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.scope import ScopedUpdate
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate


@dataclass(frozen=True)
class EditResult:
    """What an edit did, and the way back. Holds names and low-rank rows, no model.

    `requests` are those that were asked, a repeated one once. `updates` is {target name: update},
    on the device of each target; `before` (R,) has each request's loss before the edit where it
    was computed, `losses_after` those after it where somebody looked (`on_worse`); `seconds` is
    how long the edit took. `read_tokens` finds `tokens`, `hparams` say what the network was made
    with. As long as the result is held, the edit can be rolled back by itself.
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
        """Each request's mean negative log-likelihood before the edit; waits for its device."""
        found: list[float] = self.before.tolist()
        return found

    @cached_property
    def tokens(self) -> dict[str, list[str]]:
        """{input of the model: texts}: which token each row came from; waits for its device."""
        return self.read_tokens()

    @property
    def norms(self) -> dict[str, float]:
        """{target name: ‖ΔW‖ (Frobenius)}, computed when asked for."""
        return {name: float(update.norm()) for name, update in self.updates.items()}

    def saved(self, *, whole: bool = False) -> SavedEdit:
        """This edit without its model, to be written to a file or put onto the same base anew.

        Reads every edited weight as it was before the edit, for its checksum. Weights that are
        split between processes have one only with `whole`, which gathers them one by one: every
        process has to call this then, and any of them may without it. Raises EditError where the
        edit was rolled back or its model is gone: those bits are then known no longer.
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
            about["scope"] = about_below(self.entry.model, update.scope)
        return saved_edit(self.targets, self.updates, self.requests, about, self.entry)

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the edit to `path` (`load_edit` reads it), as `SavedEdit.write` does.

        Raises EditError where the edit was rolled back.
        """
        return self.saved().write(path, half=half)

    def verify(self) -> list[Verdict]:
        """A verdict on each request: what the model answers now, and whether the edit holds.

        Costs a forward pass. Raises UpdateError once the model is gone.
        """
        return self.ask(self.entry.model, self.requests)

    def rollback(self) -> None:
        """Take the edit out of the model: every weight gets back the bits it had, to the last.

        With later edits in the model, they stay (see `Entry.undo`). Calling it again does
        nothing.
        """
        self.entry.undo()
