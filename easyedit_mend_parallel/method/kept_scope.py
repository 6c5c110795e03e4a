"""Converts a trained scope to the tensors and numbers that an archive stores, and back.

Knows their names. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from easyedit_mend_parallel.errors import ArchiveError
from easyedit_mend_parallel.weights.scope import Scope, Thresholds

PREFIX, HEADER = "scope.", "scope"
"""The prefix of its tensors' names, and the key of its numbers in the archive's header."""
TENSORS = ("mean", "std", "projection", "weigh", "weigh_bias")
RELATION = "relation"
"""The tensor of the relation head, which the scopes of older archives do not have."""
HALVED = ("projection", RELATION)
"""Tensors stored in half precision: the error is far below that of the hidden states."""


def scope_tensors(scope: Scope) -> dict[str, Tensor]:
    """{name in the archive: tensor}"""
    names = TENSORS if scope.relation is None else (*TENSORS, RELATION)
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
    try:
        names = (*TENSORS, RELATION) if PREFIX + RELATION in state else TENSORS
        tensors = {name: state[PREFIX + name].float() for name in names}
        assert about is not None
        scope = Scope(
            str(about["blocks_name"]),
            tuple(int(block) for block in about["blocks"]),
            scale=float(about["scale"]),
            shift=float(about["shift"]),
            skip_first=bool(about["skip_first"]),
            relation_scale=float(about.get("relation_scale", 0.0)),
            relation_shift=float(about.get("relation_shift", 0.0)),
            thresholds=Thresholds(**{n: float(v) for n, v in about["thresholds"].items()}),
            **tensors,
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"the scope in {path} is damaged ({type(error).__name__} {error}): add it anew with "
            "`mend-parallel train --scope-only`"
        ) from error
    width = len(scope.mean)
    shapes = (scope.std.shape, scope.projection.shape[1:], scope.weigh.shape)
    relation = scope.relation
    fits = relation is None or (
        relation.dim() == 2
        and len(relation) == len(scope.projection)
        and relation.shape[1] <= width
    )
    if (
        any(shape != (width,) for shape in shapes)
        or not fits
        or not all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    ):
        raise ArchiveError(
            f"the scope in {path} is damaged: its tensors do not fit each other. Add it anew with "
            "`mend-parallel train --scope-only`"
        )
    return rest, scope
