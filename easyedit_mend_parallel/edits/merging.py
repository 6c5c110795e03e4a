"""Merges saved edits of one base model into one, whose update is the sum of theirs.

Knows the parts of a saved edit, and no model and no files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.edits.saved import SavedEdit, package_versions
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.weights.stores.scoped import SCOPED
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate


def merge_edits(edits: list[SavedEdit]) -> SavedEdit:
    """Merge `edits` of one base into one edit, whose update has all their rows: the sum of theirs.

    Raises EditError if there are none, or if a target has another shape in one of them.
    """
    if not edits:
        raise EditError("no edit is applied")
    if len(edits) == 1:
        return edits[0]
    targets: dict[str, Target] = {}
    rows: dict[str, list[LowRankUpdate]] = {}
    positions: dict[str, list[Tensor]] = {}
    requests: list[Request] = []
    before: dict[str, int] = {}
    for edit in edits:
        for name, update in edit.updates.items():
            if targets.setdefault(name, edit.targets[name]).shape != edit.targets[name].shape:
                raise EditError(f"{edit.source} and {edits[0].source} have other shapes of {name}")
            request = torch.where(update.request < 0, -1, update.request + len(requests))
            shifted = LowRankUpdate(update.keys, update.values, request)
            rows.setdefault(name, []).append(shifted)
            start = before.get(name, 0)
            positions.setdefault(name, []).append(edit.positions[name] + start)
            before[name] = start + edit.about.get("rows", {}).get(name, len(update.keys))
        requests += edit.requests
    updates = {name: LowRankUpdate.cat(parts) for name, parts in rows.items()}
    ways = [edit.about.get("hparams", {}).get("apply", "weight") for edit in edits]
    way = next(one for one in (SCOPED, "weight", "output") if one in ways)
    weights: dict[str, Any] = {}
    placements: dict[str, Any] = {}
    for edit in reversed(edits):  # the first edit of a weight has the weight's base
        weights |= edit.about["base"]["weights"]
        placements |= edit.about.get("placements", {})
    about = {
        "base": {**edits[0].about["base"], "weights": weights},
        "placements": placements,
        "rows": before,
        "tokens": _all_tokens(edits),
        "hparams": {
            **edits[0].about.get("hparams", {}),
            "apply": way,
        },
        "versions": package_versions(),
    }
    return SavedEdit(
        targets, updates, {name: torch.cat(p) for name, p in positions.items()}, requests, about
    )


def _all_tokens(edits: list[SavedEdit]) -> dict[str, list[str]]:
    """The tokens of all edits in order; empty if one edit has none, as squashed edits do."""
    each: list[dict[str, list[str]]] = [edit.about.get("tokens", {}) for edit in edits]
    names = set.intersection(*(set(tokens) for tokens in each))
    return {name: [text for tokens in each for text in tokens[name]] for name in sorted(names)}
