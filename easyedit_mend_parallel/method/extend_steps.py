"""`max_step`: scales the trained updates of failed edits until the model gives their targets.

Knows updates and batches, not how updates are made. Writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.method.step_search import (
    Part,
    Steps,
    StepSearch,
    search_steps,
    unanswered,
)
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

GROWTH = 1.2
"""The factor from one trial to the next. It is small, since a trained update nearly suffices."""


class ExtendedSteps(StepSearch):
    """Steps from 1 to `max_step`, each `GROWTH` times the one before.

    The step is 1 for a request whose target the model gives with its own update. It is also 1 for
    a request whose target no step yields; a warning names that request.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Target], max_step: float) -> None:
        super().__init__(model, targets)
        self._max_step = max_step

    def search(self, part: Part, updates: Mapping[str, LowRankUpdate]) -> Steps:
        ones = torch.ones(len(part.requests))
        last = self._max_step * ones
        return search_steps(
            self.model, self.targets, part.answers, updates, ones, last, growth=GROWTH
        )

    def missed(self, part: Part, found: Steps) -> Tensor:
        for name in unanswered(part.requests, found.answered):
            log.warning(
                "no step up to max_step (%g) makes the model answer %s: this edit keeps the length "
                "that MEND gives it",
                self._max_step,
                name,
            )
        return torch.where(found.answered, found.steps, 1.0)
