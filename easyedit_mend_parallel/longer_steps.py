"""Trained updates made longer where the model does not give the answer yet: `max_step` above 1.

Knows updates and batches, and not where own updates come from; writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.batch import Batch
from easyedit_mend_parallel.capture import TokenRows
from easyedit_mend_parallel.mend import OwnUpdates
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.requests import Request
from easyedit_mend_parallel.step_search import scaled, search_steps
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate, refuse_non_finite

log = logging.getLogger(__name__)

GROWTH = 1.2
"""The factor from one trial to the next: a trained update is nearly long enough."""


class LongerSteps:
    """`own`'s updates, each as long as it takes: an `OwnUpdates` of `mend`.

    A request whose target the model gives under its own update keeps that update. Another one's is
    made longer, `GROWTH` times with every trial and `max_step` times at most; where no trial
    brings the answer it keeps its length too, and a warning names the request. A step that was
    found is found once, however often the update is asked for. `requests` are those of the whole
    batch, and `special_ids` the tokenizer's tokens that are no part of an answer.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        own: OwnUpdates,
        max_step: float,
        requests: Sequence[Request],
        special_ids: Collection[int],
    ) -> None:
        self._model, self._own, self._max_step = model, own, max_step
        self._by_name = {target.name: target for target in targets}
        self._requests, self._special_ids = requests, special_ids
        self._steps: dict[int, Tensor] = {}

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        """Raises UpdateError for an update that is not finite."""
        updates = self._own(first, batch, rows, losses)
        if first not in self._steps:
            self._steps[first] = self._found(first, batch, updates)
        return scaled(updates, self._steps[first])

    def _found(self, first: int, batch: Batch, updates: Mapping[str, LowRankUpdate]) -> Tensor:
        with Ranks.of(self._model).together("look at every request's update"):
            refuse_non_finite(updates)
        ones = torch.ones(batch.n_requests)
        found = search_steps(
            self._model,
            self._by_name,
            batch.answers(self._special_ids),
            updates,
            ones,
            self._max_step * ones,
            growth=GROWTH,
        )
        for number in (~found.answered).nonzero().flatten().tolist():
            request = self._requests[first + number]
            log.warning(
                "no step up to max_step (%g) makes the model answer %r -> %r, so this edit is as "
                "long as MEND makes it",
                self._max_step,
                request.prompt,
                request.target_new,
            )
        return torch.where(found.answered, found.steps, ones)
