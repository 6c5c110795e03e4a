"""`max_step`: scales the trained updates of failed edits until the model gives their targets.

Knows updates and batches, not how updates are made. Writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.method.step_search import Part, search_steps
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

GROWTH = 1.2
"""The factor from one trial to the next. It is small, since a trained update nearly suffices."""


def extend_steps(
    model: nn.Module,
    targets: Mapping[str, Target],
    max_step: float,
    part: Part,
    updates: Mapping[str, LowRankUpdate],
) -> Tensor:
    """The step (R,) of each request in `part`, 1 to `max_step`.

    It is 1 for a request whose target the model gives under its own update. Another one's update is
    made longer, `GROWTH` times with every trial; where no trial brings the answer its step is 1,
    too, and a warning names the request.
    """
    ones = torch.ones(len(part.requests))
    found = search_steps(
        model, targets, part.answers, updates, ones, max_step * ones, growth=GROWTH
    )
    for request, answered in zip(part.requests, found.answered.tolist(), strict=True):
        if not answered:
            log.warning(
                "no step up to max_step (%g) makes the model answer %r -> %r, so this edit is "
                "as long as MEND makes it",
                max_step,
                request.prompt,
                request.target_new,
            )
    return torch.where(found.answered, found.steps, ones)
