"""Converts a trained scope to the tensors and numbers that an archive stores, and back.

Knows their names. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from easyedit_mend_parallel.errors import ArchiveError
from easyedit_mend_parallel.files.forms import instance_of, of_form
from easyedit_mend_parallel.weights.scope import Scope, Thresholds

PREFIX, HEADER = "scope.", "scope"
"""The prefix of its tensors' names, and the key of its numbers in the archive's header."""
NUMBERS = ("scale", "shift", "relation_scale", "relation_shift", "subject_bias")
"""Those of its numbers that are not whole."""
TENSORS = ("mean", "std", "projection", "weigh", "weigh_bias")
NEWER = ("relation", "relation_hidden", "subject")
"""Tensors of the relation head and the subject head, which not every scope has."""
HALVED = ("projection", *NEWER)
"""Tensors stored in half precision: the error is far below that of the hidden states."""


class ScopeForm(TypedDict):
    """The numbers of a scope in a file, as JSON values; the last three are newer than the rest."""

    blocks_name: str
    blocks: list[int]
    scale: float
    shift: float
    skip_first: bool
    thresholds: dict[str, float]
    relation_scale: NotRequired[float]
    relation_shift: NotRequired[float]
    subject_bias: NotRequired[float]


def scope_tensors(scope: Scope) -> dict[str, Tensor]:
    """{name in the archive: tensor}"""
    names = [*TENSORS, *(name for name in NEWER if getattr(scope, name) is not None)]
    found = {name: getattr(scope, name).detach().cpu() for name in names}
    return {
        PREFIX + name: tensor.half() if name in HALVED else tensor.float()
        for name, tensor in found.items()
    }


def scope_header(scope: Scope) -> dict[str, Any]:
    """The scope's numbers, as JSON values."""
    return {
        "blocks_name": scope.blocks_name,
        "blocks": list(scope.blocks),
        "scale": scope.scale,
        "shift": scope.shift,
        "skip_first": scope.skip_first,
        "relation_scale": scope.relation_scale,
        "relation_shift": scope.relation_shift,
        "subject_bias": scope.subject_bias,
        "thresholds": asdict(scope.thresholds),
    }


def without_scope(
    state: Mapping[str, Tensor], header: Mapping[str, Any], path: object
) -> tuple[dict[str, Tensor], Scope | None]:
    """Split the tensors of an archive: those without its scope's, and the scope (None if it has
    none).

    Raises ArchiveError if a part of the scope is missing or does not fit the rest.
    """
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    about = header.get(HEADER)
    if about is None and len(rest) == len(state):
        return rest, None
    names = [*TENSORS, *(name for name in NEWER if PREFIX + name in state)]
    missing = [name for name in names if PREFIX + name not in state]
    try:
        if missing:
            raise ValueError(f"it has no tensor {missing[0]}")
        tensors = {name: state[PREFIX + name].float() for name in names}
        return rest, scope_of(about, tensors)
    except ValueError as error:
        raise ArchiveError(
            f"the scope in {path} is damaged ({error}): add it anew with `mend-parallel train "
            "--scope-only`"
        ) from error


def scope_of(about: Any, tensors: Mapping[str, Tensor]) -> Scope:
    """The inverse of `scope_header`; `tensors` are the scope's other fields.

    Raises ValueError for numbers or tensors that cannot be those of a scope.
    """
    of_form(about, ScopeForm, "its numbers")
    read: dict[str, Any] = about
    try:
        plain: dict[str, Any] = {n: float(one) if n in NUMBERS else one for n, one in read.items()}
        thresholds = {name: float(one) for name, one in read["thresholds"].items()}
    except OverflowError as error:
        raise ValueError("a number is too large") from error
    plain["blocks"] = tuple(read["blocks"])
    plain["thresholds"] = instance_of(Thresholds, thresholds, "its thresholds")
    plain |= tensors
    scope = Scope(**plain)
    wrong = scope.misfit()
    if wrong:
        raise ValueError(wrong)
    return scope
