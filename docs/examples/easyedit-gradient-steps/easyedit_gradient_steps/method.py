"""GRADIENT_STEPS: gradient descent on the edit's own loss. Needs no training, and does not protect
other facts. Does not know where weights are stored.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host, hookimpl
from easyedit_mend_parallel.weights.ledger import Entry, Ledger
from easyedit_mend_parallel.weights.stores import prepare
from easyedit_mend_parallel.weights.target import Target, find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

NAME = "GRADIENT_STEPS"


@dataclass(kw_only=True)
class GradientStepsHparams:
    """The method's own hyperparameters, then those that EasyEdit's editors read."""

    inner_params: list[str]
    rate: float
    steps: int

    model_name: Any
    device: int | str = 0
    model_parallel: bool = False
    batch_size: int = 1
    max_length: int = 40
    alg_name: str = NAME

    @classmethod
    def from_hparams(cls, path: str | Path) -> GradientStepsHparams:
        return cls(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def descend(
    model: nn.Module, targets: Sequence[Target], batch: Batch, rate: float, steps: int
) -> dict[str, LowRankUpdate]:
    """`steps` steps of gradient descent, as one update for each target. Writes nothing.

    The gradient of a weight is deltaᵀ x, one pair of vectors for each token. Each step, and the sum
    of all steps, has the same form. Each step sees the earlier ones at the layers' outputs.
    """
    named = {target.name: target for target in targets}
    updates: dict[str, LowRankUpdate] = {}
    for _ in range(steps):
        with attached(model, named, updates):
            rows, _losses = capture(model, targets, batch)
        for name, seen in rows.items():
            step = LowRankUpdate(
                keys=seen.x[seen.live].float(),
                values=-rate * seen.delta[seen.live].float(),
                request=seen.request[seen.live],
            )
            updates[name] = joined(updates[name], step) if name in updates else step
    return updates


def joined(one: LowRankUpdate, other: LowRankUpdate) -> LowRankUpdate:
    """The sum of two updates: the rows of both."""
    return LowRankUpdate(
        torch.cat([one.keys, other.keys]),
        torch.cat([one.values, other.values]),
        torch.cat([one.request, other.request]),
    )


class Undo:
    """What EasyEdit calls `weights_copy`. EasyEdit restores a model by looping over `items()`."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __call__(self) -> None:
        self._entry.undo()

    def items(self) -> list[tuple[str, Any]]:
        self()
        return []


def apply_to_model(
    model: nn.Module,
    tok: Any,
    requests: Sequence[Mapping[str, Any]],
    hparams: GradientStepsHparams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **_: Any,
) -> tuple[nn.Module, Any]:
    """Edit `model` (or a copy of it), with EasyEdit's signature."""
    if copy:
        model = copying.deepcopy(model)
    ledger = Ledger.of(model)
    with ledger.lock, torch.no_grad():
        targets = find_targets(model, hparams.inner_params)
        prepare(model, targets)
        batch = make_batch(model, tok, as_requests(requests))
        updates = descend(model, targets, batch, hparams.rate, hparams.steps)
        entry = ledger.change(targets, updates)
    return model, Undo(entry) if return_orig_weights else {}


@hookimpl
def editing_method(host: Host) -> EditingMethod:
    return EditingMethod(NAME, apply_to_model, behaves_like="FT")
