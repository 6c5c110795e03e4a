"""Searches the step of each request's update: the smallest one that yields its target text.

A trial adds an update to the layers' outputs; nothing is written. Knows updates and batches, and
nothing of hyperparameters, hypernetworks or placements.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import TokenRows, evaluating
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.mend import OwnUpdates
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached, refuse_non_finite

GROWTH = 2.0
"""The factor from one trial to the next."""


@dataclass(frozen=True)
class Steps:
    """The result of a search: each request's step (R,), and `updates`, its rows scaled by the step.

    `answered` (R,) is true for requests whose target a step yields. For the others the step is the
    longest one. Both tensors are on the CPU.
    """

    updates: dict[str, LowRankUpdate]
    steps: Tensor
    answered: Tensor


@dataclass(frozen=True)
class Part:
    """The part of a batch that is searched: its R requests, their batch `answers` without special
    tokens in the labels, and the `rows` and `losses` (R,) that `capture` returned for it."""

    requests: Sequence[Request]
    answers: Batch
    rows: Mapping[str, TokenRows]
    losses: Tensor


class StepSearch(ABC):
    """Finds the step of each request in a part of a batch. Subclasses define `search`, which tries
    steps, and `missed`, which handles the requests that no step answers."""

    def __init__(self, model: nn.Module, targets: Mapping[str, Target]) -> None:
        self.model, self.targets = model, targets

    def __call__(self, part: Part, updates: Mapping[str, LowRankUpdate]) -> Tensor:
        """The step (R,), on the CPU, of each request of `part` along its rows of `updates`."""
        found = self.search(part, updates)
        return found.steps if found.answered.all() else self.missed(part, found)

    @abstractmethod
    def search(self, part: Part, updates: Mapping[str, LowRankUpdate]) -> Steps:
        """Try steps for every request of `part`. Writes nothing."""

    @abstractmethod
    def missed(self, part: Part, found: Steps) -> Tensor:
        """The steps (R,) if some requests of `found` are not answered; may raise instead."""


class SearchedUpdates:
    """An `OwnUpdates` of `mend`: the updates of `own`, each scaled by the step that `search` found.

    `search` is called once for each part of a batch, with finite updates, even if the updates of
    the part are computed several times. `requests` are those of the whole batch. `special_ids` are
    the tokenizer's special tokens, which are not part of an answer.
    """

    def __init__(
        self,
        model: nn.Module,
        own: OwnUpdates,
        search: StepSearch,
        requests: Sequence[Request],
        special_ids: Collection[int],
    ) -> None:
        self._model, self._own, self._search = model, own, search
        self._requests, self._special_ids = requests, special_ids
        self._steps: dict[int, Tensor] = {}

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        """Raises UpdateError for an update that is not finite, and what `search` raises."""
        updates = self._own(first, batch, rows, losses)
        if first not in self._steps:
            with Ranks.of(self._model).agree("look at every request's update"):
                refuse_non_finite(updates)
            asked = self._requests[first : first + batch.n_requests]
            part = Part(asked, batch.answers(self._special_ids), rows, losses)
            self._steps[first] = self._search(part, updates)
        return scaled(updates, self._steps[first])


def downhill(
    updates: Mapping[str, LowRankUpdate], rows: Mapping[str, TokenRows], n_requests: int
) -> tuple[dict[str, LowRankUpdate], Tensor]:
    """`updates` with signs such that each decreases its request's loss, and the slopes (R,), CPU.

    To first order, adding ΔW changes a request's loss by ⟨ΔW, G⟩, G = Σ δ xᵀ over its `rows`. An
    update of raw rows (x, −δ) is −G, which always decreases the loss. Normalised rows need not,
    since they were centred. Therefore ⟨ΔW, G⟩ is computed for each request and target, from
    products between rows; if it is positive, the sign of that part is changed. A slope is the sum
    over targets of −|⟨ΔW, G⟩|: never positive, and zero only if no target's part changes the loss.
    """
    slopes = torch.zeros(n_requests)
    turned = {}
    for name, update in updates.items():
        products = _products(update, rows[name], n_requests)
        sign = torch.where(products > 0, -1.0, 1.0)
        values = update.values * sign[update.request].unsqueeze(-1)
        turned[name] = LowRankUpdate(update.keys, values, update.request)
        slopes -= products.abs().cpu()
    return turned, slopes


def longest(
    updates: Mapping[str, LowRankUpdate], limits: Mapping[str, float], n_requests: int
) -> Tensor:
    """(R,), CPU: the largest factor of each request's part of `updates` for which ‖ΔW‖ stays
    within `limits` ({target name: norm}) in every target. Zero for a request without an update."""
    factor = torch.full((n_requests,), float("inf"))
    for name, update in updates.items():
        norms = torch.stack([_part(update, request).norm() for request in range(n_requests)]).cpu()
        factor = torch.minimum(factor, limits[name] / norms)  # infinite for a norm of zero
    return torch.where(factor.isfinite(), factor, 0.0)


@torch.no_grad()
def search_steps(
    model: nn.Module,
    targets: Mapping[str, Target],
    batch: Batch,
    updates: Mapping[str, LowRankUpdate],
    first: Tensor,
    last: Tensor,
    *,
    growth: float = GROWTH,
    margin: float = 1.0,
) -> Steps:
    """Search, for each request of `batch`, a step along its part of `updates` after which all its
    labels are the argmax. The first such step is taken, which is about the smallest.

    The first trial is `first` (R,); each further one is `growth` times the previous, up to `last`
    (R,). After a success, `margin` times the step is tried too, and taken if it succeeds. Each
    request has only its own step; every trial is one forward pass of all requests.

    Raises UpdateError if the processes of a split model get different results.
    """
    ranks = Ranks.of(model)

    def trial(steps: Tensor) -> Tensor:
        with evaluating(model), attached(model, targets, scaled(updates, steps), batch.request):
            answered = batch.answered(model)
        if not ranks.alone and not ranks.same(zlib.crc32(bytes(answered.tolist()))):
            raise UpdateError(
                "the processes that hold this model got different answers from one step of a "
                "search; nothing was written. Run them on devices of one kind"
            )
        return answered

    steps = torch.minimum(first, last)
    answered = trial(steps)
    while (growing := ~answered & (steps < last)).any():
        steps = torch.where(growing, torch.minimum(growth * steps, last), steps)
        answered |= trial(steps)
    if margin > 1:
        further = torch.where(answered, torch.minimum(margin * steps, last), steps)
        steps = torch.where(trial(further), further, steps)
    return Steps(scaled(updates, steps), steps, answered)


def scaled(updates: Mapping[str, LowRankUpdate], steps: Tensor) -> dict[str, LowRankUpdate]:
    """`updates` with each request's values multiplied by its step in `steps` (R,)."""
    return {
        name: LowRankUpdate(
            update.keys,
            update.values * steps.to(update.values.device)[update.request].unsqueeze(-1),
            update.request,
        )
        for name, update in updates.items()
    }


def unanswered(requests: Sequence[Request], answered: Tensor) -> list[str]:
    """`prompt -> target` of each request whose entry in `answered` (R,) is false, for messages."""
    return [
        f"{request.prompt!r} -> {request.target_new!r}"
        for request, yes in zip(requests, answered.tolist(), strict=True)
        if not yes
    ]


def _part(update: LowRankUpdate, request: int) -> LowRankUpdate:
    of_request = update.request == request
    return LowRankUpdate(
        update.keys[of_request], update.values[of_request], update.request[of_request]
    )


def _products(update: LowRankUpdate, rows: TokenRows, n_requests: int) -> Tensor:
    """(R,): ⟨ΔW, G⟩ of each request, from the rows (n) of both."""
    found = []
    for request in range(n_requests):
        part, of_request = _part(update, request), rows.request == request
        x, delta = rows.x[of_request].float(), rows.delta[of_request].float()
        found.append(((part.keys @ x.T) * (part.values @ delta.T)).sum())
    return torch.stack(found)
