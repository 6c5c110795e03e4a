"""What a plugin may offer: editing methods under a name of their own, for EasyEdit's editors.

A package offers through an entry point in the group `easyedit` that names a module with hook
implementations; `docs/plugins.md` builds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pluggy

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
    """

    name: str
    apply_to_model: Callable[..., tuple[Any, Any]]
    behaves_like: str | None = None


@hookspec
def editing_method(host: Host) -> EditingMethod | None:
    """Offer an editing method, or None where this EasyEdit cannot run it."""
