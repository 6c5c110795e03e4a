"""What every store offers, whichever way it keeps its weight, and what all of them share: the way
back to a weight that was moved since it was edited, and what no store can write."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

WRITABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a weight can be stored as and take an update. Quantized weights are integers or float8."""


@dataclass(frozen=True)
class WeightPlace:
    """One target's weight, for which a store is wanted.

    `placement` is where it lies now; `apply` is the user's wish: `"weight"`, the update is
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
        """Put `before` back: also after a commit that broke off, and as often as asked.

        To where the weight is by then: a model may have been dispatched anew (`CurrentStore`).
        """

    def forget(self) -> None:
        """Let the backup go; the update can then no longer be undone by itself."""


class Store(Protocol):
    """Where the updates of one target go."""

    def stage(self, update: LowRankUpdate) -> Staged:
        """Prepare `update`; changes nothing. Raises UpdateError where it cannot be written."""


@runtime_checkable
class WeightStore(Store, Protocol):
    """Where one target's weight is kept. What moved there since it was edited can be undone."""

    def read(self) -> Tensor:
        """The weight as it is now; not to be written to."""

    def put(self, bits: Tensor) -> None:
        """Make the weight `bits`, cast to its dtype, on any device. Wholly or not at all."""


class CurrentStore:
    """Finds one target's store anew, for an update whose own store keeps the weight no longer.

    People dispatch models again between an edit and its undo: what was resident is offloaded,
    what was on disk is in memory. Every store hands what it cannot do itself to this. Holds the
    model weakly: a deleted model is freed.
    """

    def __init__(self, place: WeightPlace) -> None:
        self.target = place.target
        self._apply = place.apply
        self._model = weakref.ref(place.model)

    @property
    def layer(self) -> nn.Module:
        """The target's layer. Raises UpdateError once the model is gone."""
        return self.target.layer(self.model)

    @property
    def model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise UpdateError(f"{self.target.name}: its model no longer exists")
        return model

    def put(self, bits: Tensor) -> None:
        """Make the weight `bits` in the store that keeps it now. Raises what that store raises."""
        store = self._store()
        if not isinstance(store, WeightStore):
            raise UpdateError(
                f"{self.target.name} was moved since it was edited, and {type(store).__name__}, "
                "which keeps it now, cannot put its bits back. Dispatch the model as it was then, "
                "and undo again"
            )
        store.put(bits)

    def write(self, update: LowRankUpdate) -> None:
        """Stage and commit `update` in the store that keeps the weight now."""
        self._store().stage(update).commit()

    def moved(self) -> UpdateError:
        """The error of a store that is asked for a weight which it keeps no longer."""
        return UpdateError(
            f"{self.target.name} was moved while it was edited: dispatch the model before an edit "
            "or after it, not meanwhile"
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
    """Raise UpdateError where `weight` + `update` could be more than float16 holds."""
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
    return UpdateError(f"{target.name}: the backup was let go")
