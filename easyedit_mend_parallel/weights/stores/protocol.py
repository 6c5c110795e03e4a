"""The protocol of all stores, and what stores share.

That is: finding a weight that was moved after its edit, and refusing weights and updates that no
store can write. Knows no kind of storage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.stores.references import ModelReference
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

WRITABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes of weights that can take an update. Quantized weights are integers or float8."""


@dataclass(frozen=True)
class WeightPlace:
    """One target's weight, for which a store is needed.

    `placement` is its current placement. `apply` is the user's choice: `"weight"`, the update is
    written, `"output"`, it is added to the layer's output, or `"scoped"`, the same for the
    sequences in which its scope fires.
    """

    model: nn.Module
    target: Target
    placement: Placement
    apply: str


class Staged(Protocol):
    """One update of one weight, ready to be committed."""

    @property
    def before(self) -> Tensor | None:
        """The weight's bits when this update was staged; None after `forget`."""

    @property
    def independent(self) -> bool:
        """Whether `undo` removes only this update, and leaves later ones of the same weight.

        If false, `undo` restores the weight as it was when this update was staged, and the ledger
        adds later updates again. If true, `undo` also works after `forget`, which then drops only
        what `commit` needs.
        """

    def commit(self) -> None:
        """Write the update. All checks were made when it was staged."""

    def undo(self) -> None:
        """Restore `before`, also after an interrupted commit. Can be called repeatedly.

        Restores the weight at its current place: the model may have been dispatched again
        (`CurrentStore`).
        """

    def forget(self) -> None:
        """Drop the backup. After that the update can no longer be undone by itself."""


class Store(Protocol):
    """Adds the updates of one target to the model."""

    def stage(self, update: LowRankUpdate) -> Staged:
        """Prepare `update`; changes nothing. Raises UpdateError if it cannot be written."""


@runtime_checkable
class WeightStore(Store, Protocol):
    """A store that can read and restore a weight, also one that moved to it after an edit."""

    def read(self) -> Tensor:
        """The current weight. Do not write to it."""

    def put(self, bits: Tensor) -> None:
        """Set the weight to `bits` (on any device), cast to its dtype. Wholly or not at all.

        Of a weight that is split between processes, `bits` are this process's part, or the whole.
        """


class CurrentStore(ModelReference):
    """Finds one target's current store, for an update whose own store no longer has the weight.

    A model may be dispatched again between an edit and its undo: a resident weight is then
    offloaded, or a weight on disk is in memory. Stores delegate to this class what they can no
    longer do.
    """

    def __init__(self, place: WeightPlace) -> None:
        super().__init__(place.target, place.model)
        self._apply = place.apply

    @property
    def layer(self) -> nn.Module:
        """The target's layer. Raises UpdateError if the model was deleted."""
        return self.target.layer(self.model)

    def put(self, bits: Tensor) -> None:
        """Set the weight to `bits` in its current store. Raises what that store raises."""
        store = self._store()
        if not isinstance(store, WeightStore):
            raise UpdateError(
                f"{self.target.name} was moved after its edit, and its current store, "
                f"{type(store).__name__}, cannot restore its bits. Dispatch the model as it was "
                "during the edit, and undo again"
            )
        store.put(bits)

    def write(self, update: LowRankUpdate) -> None:
        """Stage and commit `update` in the weight's current store."""
        self._store().stage(update).commit()

    def moved(self) -> UpdateError:
        """The error of a store that no longer has the weight."""
        return UpdateError(
            f"{self.target.name} was moved while it was edited: dispatch the model before or after "
            "an edit, not during one"
        )

    def _store(self) -> Store:
        from easyedit_mend_parallel.weights.stores import store_for  # which imports every store

        return store_for(self.model, self.target, self._apply)


def refuse_unwritable(target: Target, layer: nn.Module, weight: Tensor) -> None:
    """Raise UpdateError for a weight that is packed."""
    if weight.dtype not in WRITABLE:
        raise UpdateError(
            f"{target.name} is stored as {weight.dtype} ({type(layer).__name__}): a quantized "
            "weight cannot take an update. Set `apply: output` in the hparams, which adds the "
            "update to the layer's output instead, or load the model without "
            "quantization_config"
        )


def refuse_overflow(target: Target, weight: Tensor, update: LowRankUpdate) -> None:
    """Raise UpdateError if `weight` + `update` could exceed what float16 holds."""
    if weight.dtype != torch.float16 or not len(update.keys) or not weight.numel():
        return
    largest = update.largest_possible().to(weight.device) + weight.abs().max()
    if largest > torch.finfo(torch.float16).max:
        raise UpdateError(
            f"the update of {target.name} could exceed what float16 holds; nothing was written. "
            "Load the model in bfloat16 or float32"
        )


def let_go(target: Target) -> UpdateError:
    """The error of an undo that comes after `forget`."""
    return UpdateError(f"{target.name}: the backup was dropped; the edit stays")
