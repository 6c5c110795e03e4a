"""Computes an edit in several steps, each on the model with the previous steps.

For targets of many tokens, of which one step yields only some. Writes nothing: the previous steps
are added to the layers' outputs. The result is one low-rank update. Knows no hyperparameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import TokenRows, capture
from easyedit_mend_parallel.method.mend import OwnUpdates
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


class InnerSteps:
    """An `OwnUpdates` of `steps` steps (Finn et al. 2017, section 2.2, with MEND's update in each).

    Every step after the first costs a forward and a backward pass. The update has `steps` times the
    rows. Each request has only its own steps.
    """

    def __init__(
        self, model: nn.Module, targets: Sequence[Target], own: OwnUpdates, steps: int
    ) -> None:
        self._model, self._targets, self._own, self._steps = model, targets, own, steps
        self._by_name = {target.name: target for target in targets}

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        updates = self._own(first, batch, rows, losses)
        for _ in range(self._steps - 1):
            with attached(self._model, self._by_name, updates, route=batch.request):
                rows, losses = capture(self._model, self._targets, batch)
            more = self._own(first, batch, rows, losses)
            updates = {name: _joined(updates[name], more[name]) for name in updates}
        return updates


def _joined(one: LowRankUpdate, other: LowRankUpdate) -> LowRankUpdate:
    """The sum of two updates of one target."""
    return LowRankUpdate(
        torch.cat([one.keys, other.keys]),
        torch.cat([one.values, other.values]),
        torch.cat([one.request, other.request.to(one.request.device)]),
    )
