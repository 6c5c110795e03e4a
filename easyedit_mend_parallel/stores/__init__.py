"""Stores: how an update gets into a weight, by where the weight is kept.

A store first *stages* an update (all that can fail: room, dtype, the backup), then *commits* it
and can *undo* it. Nothing above this folder asks which kind of store it is.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.placement import place
from easyedit_mend_parallel.stores.resident import ResidentStore
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate

__all__ = ["Staged", "Store", "store_for"]


class Staged(Protocol):
    """One update of one weight, ready to be committed."""

    @property
    def before(self) -> Tensor | None:
        """The weight's bits as they were when this was staged; None once forgotten."""

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


def store_for(model: nn.Module, target: Target) -> Store:
    """The store of `target`'s weight as it is kept now.

    Raises PlacementError for a weight that is kept where no store can write.
    """
    placement = place(model, target)
    if placement.kept == "resident":
        return ResidentStore(target, target.layer(model))
    where = {"cpu": "host memory (RAM)", "disk": "disk"}[placement.kept]
    raise PlacementError(
        f"{target.name} is offloaded to {where} and only visits {placement.device} while its "
        "layer computes. Editing offloaded weights is not supported yet: give its block a device "
        "of its own in device_map (model_kwargs in the hparams), other blocks may stay offloaded"
    )
