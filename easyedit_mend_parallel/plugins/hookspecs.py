"""The hooks of a plugin: editing methods for EasyEdit's editors, and weight stores.

A plugin has an entry point in the group `easyedit` that names a module with hook implementations;
`docs/plugins.md` builds one.
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
    method of EasyEdit: decisions that depend on a method's name (dtype, padding side, whether
    batches are allowed) are made as for that method.

    `trainable` is for a method that is trained: it is called once with the host and returns a class
    like EasyEdit's `EditableModel`, which EasyEdit's `EditTrainer` constructs as
    `(model, config, model_constructor)`. `alg` in the training file then names the method.
    """

    name: str
    apply_to_model: Callable[..., tuple[Any, Any]]
    behaves_like: str | None = None
    trainable: Callable[[Host], Callable[[Any, Any, Callable[[], Any]], Any]] | None = None


@hookspec(firstresult=True)
def weight_store(place: WeightPlace) -> Store | None:
    """A store for a kind of weight that the plugin supports, or None for any other.

    Plugins are called before this package's own stores, so they can also replace those.
    """


@hookspec
def editing_method(host: Host) -> EditingMethod | None:
    """An editing method, or None if this EasyEdit cannot run it."""
