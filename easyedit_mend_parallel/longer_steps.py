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
from easyedit_mend_parallel.step_search import SearchedUpdates, search_steps
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate, refuse_non_finite

log = logging.getLogger(__name__)

GROWTH = 1.2
"""The factor from one trial to the next: a trained update is nearly long enough."""


class LongerSteps(SearchedUpdates):
    """`own`'s updates, each as long as it takes.

    A request whose target the model gives under its own update keeps that update. Another one's is
    made longer, `GROWTH` times with every trial and `max_step` times at most; where no trial
    brings the answer it keeps its length too, and a warning names the request.
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
        super().__init__(model, targets, requests, special_ids)
        self._own, self._max_step = own, max_step

    def directions(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        return self._own(first, batch, rows, losses)

    def search(
        self,
        asked: Sequence[Request],
        answers: Batch,
        rows: Mapping[str, TokenRows],
        losses: Tensor,
        updates: Mapping[str, LowRankUpdate],
    ) -> Tensor:
        with Ranks.of(self.model).together("look at every request's update"):
            refuse_non_finite(updates)
        ones = torch.ones(len(asked))
        last = self._max_step * ones
        found = search_steps(self.model, self.by_name, answers, updates, ones, last, growth=GROWTH)
        for request, answered in zip(asked, found.answered.tolist(), strict=True):
            if not answered:
                log.warning(
                    "no step up to max_step (%g) makes the model answer %r -> %r, so this edit is "
                    "as long as MEND makes it",
                    self._max_step,
                    request.prompt,
                    request.target_new,
                )
        return torch.where(found.answered, found.steps, ones)
