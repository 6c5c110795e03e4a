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
    """What a search found: each request's step (R,), and `updates`, its rows scaled by that.

    `answered` (R,) says whose answer was reached. Where it was not, the step is the longest one.
    Steps and answers are on the CPU.
    """

    updates: dict[str, LowRankUpdate]
    steps: Tensor
    answered: Tensor


@dataclass(frozen=True)
class Part:
    """The part of a batch that a search is for: its R requests, their batch with labels on nothing
    but the `answers`' own tokens, and the `rows` and `losses` (R,) that `capture` gave for it."""

    requests: Sequence[Request]
    answers: Batch
    rows: Mapping[str, TokenRows]
    losses: Tensor


class StepSearch(ABC):
    """Finds the step of each request in a part of a batch. Two methods are left to subclasses:
    `search`, and `missed`, which decides on the requests for which it found no step."""

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
        """The steps (R,) where `found` has requests that are not answered; may raise instead."""


class SearchedUpdates:
    """`own`'s updates, each request's as long as `search` found: an `OwnUpdates` of `mend`.

    `search` gives the step (R,) of each request along its part of finite updates, and raises what
    it likes; it is asked once for a part of a batch, however often the update is. `requests` are
    those of the whole batch, and `special_ids` the tokenizer's tokens that are no part of an
    answer.
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
        """Raises UpdateError for an update that is not finite, and what the search raises."""
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
    """`updates` turned so that each goes down its request's loss; and how steeply, (R,), CPU.

    To first order, adding ΔW changes a request's loss by ⟨ΔW, G⟩, G = Σ δ xᵀ over its `rows`. An
    update that is raw rows (x, −δ) is −G: always down. Rows that were normalised are not: centring
    turns them. So ⟨ΔW, G⟩ is computed, from products between rows, for each request and target, and
    where it is positive the sign of that part is changed. The result is the sum over targets of
    −|⟨ΔW, G⟩|: never positive, and zero only where no target's part changes the loss.
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
        factor = torch.minimum(factor, limits[name] / norms)  # a norm of zero limits nothing
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
    """For each request of `batch` a step along its part of `updates` after which every label of
    `batch` is the model's answer: the first one found, so about the shortest.

    The steps tried are `first` (R,) and, until the answer is there, `growth` times the one before,
    up to `last` (R,). Where the answer is found, `margin` times the step is tried too, and taken if
    it is there still. Only its own step applies to a request; all share one forward pass for each
    trial.

    Raises UpdateError where the processes that hold the model together come to other answers.
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
    """`updates` with each request's rows as long as its step of `steps` (R,)."""
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
