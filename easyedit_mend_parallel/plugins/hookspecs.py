"""What a plugin may offer: editing methods for EasyEdit's editors, and stores for weights.

A package offers through an entry point in the group `easyedit` that names a module with hook
implementations; `docs/plugins.md` builds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from easyedit_mend_parallel.weights.stores.protocol import Store, WeightPlace

PROJECT = "easyedit"
"""The name of the pluggy project, and of the entry-point group in which plugins are found."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Host:
    """The EasyEdit that was imported: `package` is its top module."""

    package: ModuleType


@dataclass(frozen=True)
class EditingMethod:
    """One method, as EasyEdit's editors call it.

    `name` is the `alg_name` that selects it. `apply_to_model` has EasyEdit's signature:
    `(model, tok, requests, hparams, copy=False, return_orig_weights=False,
    keep_original_weight=False, **kwargs) -> (model, weights_copy)`. `behaves_like` names a
    method that EasyEdit knows: whatever EasyEdit decides by a method's name (dtype, padding
    side, whether batches are allowed) is decided as for that one.

    `trainable`, where the method is trained, is given the host once and returns what EasyEdit's
    `EditTrainer` constructs as `(model, config, model_constructor)`: a class that follows
    EasyEdit's `EditableModel`. `alg` in the training file then names the method.
    """

    name: str
    apply_to_model: Callable[..., tuple[Any, Any]]
    behaves_like: str | None = None
    trainable: Callable[[Host], Callable[[Any, Any, Callable[[], Any]], Any]] | None = None


@hookspec(firstresult=True)
def weight_store(place: WeightPlace) -> Store | None:
    """Offer a store for a kind of weight that you know, or None for any other.

    Plugins are asked before this package's own stores, so one can also replace those.
    """


@hookspec
def editing_method(host: Host) -> EditingMethod | None:
    """Offer an editing method, or None where this EasyEdit cannot run it."""
