"""Implements `untrained: true`: the identity as network, and a search for the step of each edit.

Knows the network and its statistics. Writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import TokenRows, evaluating
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.archive import Archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.method.mend import OwnUpdates
from easyedit_mend_parallel.method.step_search import (
    Part,
    Steps,
    StepSearch,
    downhill,
    longest,
    search_steps,
    unanswered,
)
from easyedit_mend_parallel.method.unreached import refuse_unreached
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

log = logging.getLogger(__name__)

BEGIN = 1 / 4
"""The first step of a search, as a fraction of the step at which a linear loss would be zero. It is
small, since losses are not linear, and a step can also be too long to yield the target."""


def identity_network(
    targets: Sequence[Target], config: HypernetworkConfig, archive: Archive | None
) -> Hypernetwork:
    """The network that returns its input rows, on the CPU. With `archive`, it normalises them by
    the archive's statistics; nothing else of the archive is used.

    It is MEND's network before training (Mitchell et al. 2022, section 3.2) with `init: id`. Its
    low-rank part is zero, so the rank is 1. Its rates are 1, since the step is searched. Raises
    ArchiveError if the statistics are of other targets.
    """
    if config.norm and archive is None:
        log.warning(
            "untrained: true without an archive edits with plain gradients, not normalised; "
            "`mend-parallel calibrate` gathers the statistics for that in minutes"
        )
    if archive is not None and not config.norm:
        log.warning("norm is false: the statistics of %s are not used", archive.path)
    if archive is not None and archive.trained:
        log.warning(
            "untrained is true: of %s, which may hold a trained network, only the statistics are "
            "used. Leave untrained out to edit with that network",
            archive.path,
        )
    normalised = config.norm and archive is not None
    least = replace(
        config, rank=1, n_hidden=0, init="id", norm=normalised, edit_lr=1.0, lr_scale=1.0
    )
    network = Hypernetwork(targets, least)
    if archive is not None and normalised:
        archive.load_statistics_into(network)
    return network


@dataclass(frozen=True)
class Reach:
    """The limits of an untrained edit's step.

    `limits` {target name: norm} are the largest allowed ‖ΔW‖. `margin` multiplies the first step
    that yields the target, as far as the limits allow and the answer stays.
    """

    limits: Mapping[str, float]
    margin: float = 1.0


class Downhill:
    """An `OwnUpdates` of `mend`: the updates of `own`, with signs that decrease the loss."""

    def __init__(self, model: nn.Module, own: OwnUpdates) -> None:
        self._own, self._ranks = own, Ranks.of(model)

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        updates = self._own(first, batch, rows, losses)
        with self._ranks.agree("set the sign of the update"):
            return downhill(updates, rows, batch.n_requests)[0]


class ShortestSteps(StepSearch):
    """For each request the smallest step down its loss after which the model gives its target.

    Trials are near the step at which a linear loss would be zero (Polyak 1969). The sign of an
    update that would increase the loss is changed first.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Target], reach: Reach) -> None:
        super().__init__(model, targets)
        self._reach = reach

    def search(self, part: Part, updates: Mapping[str, LowRankUpdate]) -> Steps:
        n = part.answers.n_requests
        with Ranks.of(self.model).agree("search the step"):
            turned, slopes = downhill(updates, part.rows, n)
            last = longest(turned, self._reach.limits, n)
            straight = torch.where(slopes < 0, -part.losses.cpu() / slopes, last)
        return search_steps(
            self.model,
            self.targets,
            part.answers,
            turned,
            BEGIN * straight,
            last,
            margin=self._reach.margin,
        )

    def missed(self, part: Part, found: Steps) -> Tensor:
        """Raises UpdateError, which names the requests whose target no step yields; TargetError if
        nothing could be changed, since no target has a token of theirs."""
        refuse_unreached(found.updates)
        answers = part.answers
        with torch.no_grad(), evaluating(self.model):
            with attached(self.model, self.targets, found.updates, answers.request):
                reached = answers.losses_on(self.model)
            before = answers.losses_on(self.model)
        raise _unanswered(part.requests, found.answered, before, reached)


def say_unanswered(model: nn.Module, answers: Sequence[Batch], requests: Sequence[Request]) -> None:
    """Log a warning that names the requests whose target the edited model does not give.

    `answers` are the parts of the requests' batch. Each step was searched for one request alone.
    Written together, updates can disturb each other, and so can rounding in half precision.
    """
    with torch.no_grad(), evaluating(model):
        answered = torch.cat([part.answered(model) for part in answers])
    lost = unanswered(requests, answered)
    if lost:
        log.warning(
            "%d of %d requests are not answered by the edited model, although each was with its "
            "own update: %s. Edit them one after another (each sees the edits before it); with a "
            "model in half precision, load it in float32 or set apply: output",
            len(lost),
            len(requests),
            "; ".join(lost),
        )


def _unanswered(
    requests: Sequence[Request], answered: Tensor, before: Tensor, reached: Tensor
) -> UpdateError:
    missed = [
        f"{name} (negative log-likelihood {then:.2f}, at the longest step {now:.2f})"
        for name, then, now in zip(
            unanswered(requests, answered),
            before.cpu()[~answered].tolist(),
            reached.cpu()[~answered].tolist(),
            strict=True,
        )
    ]
    return UpdateError(
        f"no step within max_relative_norm makes the model answer {'; '.join(missed)}; nothing was "
        "written. Give `archive` the statistics that `mend-parallel calibrate` gathers (they put "
        "more answers within reach), raise max_relative_norm (which also changes more of what "
        "the model says of other things), name more weights in inner_params, or train a network"
    )
