"""What every store offers, whichever way it keeps its weight."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from easyedit_mend_parallel.update import LowRankUpdate


class Staged(Protocol):
    """One update of one weight, ready to be committed."""

    @property
    def before(self) -> Tensor | None:
        """The weight's bits as they were when this was staged; None once forgotten."""

    @property
    def independent(self) -> bool:
        """Whether `undo` takes out this update alone and leaves later ones of the same weight.

        Where it is false, `undo` puts the weight back to what it was when this was staged, and
        the ledger adds later updates again. Where it is true, `undo` works after `forget` too:
        only what `commit` needs is then let go.
        """

    def commit(self) -> None:
        """Write the update. Whatever could be checked was checked when it was staged."""

    def undo(self) -> None:
        """Put `before` back: also after a commit that broke off, and as often as asked."""

    def forget(self) -> None:
        """Let the backup go; the update can then no longer be undone by itself."""


class Store(Protocol):
    """Where one target's weight is kept."""

    def stage(self, update: LowRankUpdate) -> Staged:
        """Prepare `update`; changes nothing. Raises UpdateError where it cannot be written."""
