"""Proposes the updates of a batch of requests: a batch in, updates out; nothing is written.

The caller decides what to do with a proposal: write it, try it, or train through it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import LayerRows, TokenRows, capture
from easyedit_mend_parallel.method.edited_forward import EditedForwards
from easyedit_mend_parallel.method.growing_system import SolveRows
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.least_squares import (
    Aggregate,
    System,
    bytes_by_inputs,
    bytes_by_rows,
    bytes_for_a_token,
    scale_of,
)
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, refuse_non_finite

STATES_SHARE = 8
"""One part in this many of a batch's memory, beside its systems, is for hidden states."""


@dataclass(frozen=True)
class Proposal:
    """What MEND would change: an update for each target, on the target's device.

    `losses` (R,) are the requests' losses on the model as it was.
    """

    updates: dict[str, LowRankUpdate]
    losses: Tensor


def propose(
    model: nn.Module, targets: Sequence[Target], batch: Batch, network: Hypernetwork
) -> Proposal:
    """MEND's edit of `batch` (Mitchell et al. 2022, algorithm 2), without writing it.

    The update of a batch is the sum of its requests' updates, each made from the request's own
    loss. Differentiable in the network's parameters when gradients are enabled. Raises what
    `capture` raises.
    """
    return _own(model, targets, batch, NetworkUpdates(model, network))


class OwnUpdates(Protocol):
    """What makes each request's own update. Every process that holds the model has to call it."""

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        """Of the requests of `batch`, part of a larger one from its request `first` on, with
        the `rows` and `losses` (R,) that `capture` gave for it, both weighed or neither."""


class NetworkUpdates:
    """`OwnUpdates` by a trained hypernetwork."""

    def __init__(self, model: nn.Module, network: Hypernetwork) -> None:
        self._ranks, self._network = Ranks.of(model), network

    def __call__(
        self, first: int, batch: Batch, rows: Mapping[str, TokenRows], losses: Tensor
    ) -> dict[str, LowRankUpdate]:
        with self._ranks.agree("compute the update"):
            updates: dict[str, LowRankUpdate] = self._network(rows)
        return updates


def propose_batch(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    own_updates: OwnUpdates,
    options: Aggregate,
    *,
    limit: int,
    preserved: PreservedInputs | None = None,
) -> Proposal:
    """One update for the requests of `batch`, combined as `options` say; nothing is written.

    For one request this is what `own_updates` gives, unless the options solve one request, too
    (`Aggregate.solves_one`; with a `continuation_weight` `batch` has the continuations). More go
    through the model in parts, so that the rows of a part and the systems stay within `limit`
    bytes; the model's own activations come on top. `preserved` are the inputs that a least-squares
    system preserves.

    Raises what `capture` and `own_updates` raise; UpdateError for systems that do not fit the
    limit or cannot be solved.
    """
    if batch.n_requests == 1 and not options.solves_one:
        return _own(model, targets, batch, own_updates)
    if options.how == "least_squares":
        return _solved(model, targets, batch, own_updates, options, limit, preserved)
    return _summed(model, targets, batch, own_updates, options, limit)


@dataclass(frozen=True)
class OwnRows:
    """What each request of a batch asks for by itself: its update, and that update's rows in the
    request's own edited forward pass. `losses` (R,) are those on the model as it was."""

    updates: dict[str, LowRankUpdate]
    rows: dict[str, SolveRows]
    losses: Tensor


def own_rows(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    own_updates: OwnUpdates,
    *,
    limit: int,
    continuation_weight: float = 0.0,
) -> OwnRows:
    """Every request's own update, and what it adds at each target to the tokens that it sees.

    One forward and backward, and one forward with the updates attached, in parts of at most
    `limit` bytes. With `continuation_weight` tokens after a target have rows too, with this weight,
    that ask for no change. Raises what `capture` and `own_updates` raise.
    """
    forwards = EditedForwards(model, targets, after=continuation_weight > 0)
    losses: list[Tensor] = []
    updates: dict[str, list[LowRankUpdate]] = {target.name: [] for target in targets}
    rows: dict[str, list[SolveRows]] = {target.name: [] for target in targets}
    for first, part in _parts(batch, limit // bytes_for_a_token(targets)):
        own = _EditedForward.of(model, forwards, first, part, own_updates, True)
        losses.append(own.losses)
        for name, seen in own.seen.items():
            update = own.updates[name].numbered_from(first)
            request = seen.request + first
            d = update.added(seen.x, route=request).masked_fill(seen.after.unsqueeze(1), 0.0)
            x = seen.x * scale_of(seen.after, continuation_weight)
            updates[name].append(update)
            rows[name].append(SolveRows.of(x, d, seen.label_mask, request))
    return OwnRows(
        {name: LowRankUpdate.cat(found) for name, found in updates.items()},
        {name: SolveRows.cat(found) for name, found in rows.items()},
        torch.cat(losses),
    )


def _own(
    model: nn.Module, targets: Sequence[Target], batch: Batch, own_updates: OwnUpdates
) -> Proposal:
    """Every request's own update, of all requests at once."""
    rows, losses = capture(model, targets, batch)
    return Proposal(own_updates(0, batch, rows, losses), losses)


def _summed(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    own_updates: OwnUpdates,
    options: Aggregate,
    limit: int,
) -> Proposal:
    """Every request's own update, from its own loss or its share of one mean loss, added up."""
    rows: dict[str, list[LowRankUpdate]] = {target.name: [] for target in targets}
    losses = []
    shares = batch.label_shares() if options.how == "mean_loss" else None
    for first, part in _parts(batch, limit // bytes_for_a_token(targets)):
        captured, loss = capture(model, targets, part)
        losses.append(loss)
        if shares is not None:
            share = shares[first : first + part.n_requests]
            captured, loss = _weighed(captured, share), loss * share.to(loss.device)
        for name, update in own_updates(first, part, captured, loss).items():
            rows[name].append(update.numbered_from(first))
    updates = {name: LowRankUpdate.cat(parts) for name, parts in rows.items()}
    return Proposal(updates, torch.cat(losses))


def _solved(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    own_updates: OwnUpdates,
    options: Aggregate,
    limit: int,
    preserved: PreservedInputs | None,
) -> Proposal:
    """Every request's own update, what it does in the request's own run, one solve a target."""
    by_rows, left = _forms(targets, batch, options, limit, preserved)
    of = {} if preserved is None else preserved.of
    for_states = left // STATES_SHARE
    parts = _parts(batch, (left - for_states) // bytes_for_a_token(targets))
    runs = EditedForwards(model, targets, for_states, after=options.goes_on)
    combined: dict[str, LowRankUpdate] = {}
    edited = options.keys_from == "edited"
    kept: _EditedForward | None = None
    for _ in range(options.passes if edited else 1):
        systems = {
            target.name: System(target, by_rows[target.name], options, of.get(target.name))
            for target in targets
        }
        losses = []
        for first, part in parts:
            own = kept or _EditedForward.of(model, runs, first, part, own_updates, edited)
            kept = own if len(parts) == 1 else None  # the limit has room for one part's rows
            losses.append(own.losses)
            now = runs.combined(first, part, combined) if combined else own.seen
            with Ranks.of(model).agree("add to the system"):
                for name, seen in now.items():
                    if combined:
                        seen, d = own.asked_now(name, seen, combined[name])
                    else:
                        d = own.asked(name)
                    systems[name].add(seen.x, d, seen.request + first, seen.label_mask, seen.after)
        with Ranks.of(model).agree("solve for the update"):
            combined = {name: system.solved() for name, system in systems.items()}
    return Proposal(combined, torch.cat(losses))


@dataclass(frozen=True)
class _EditedForward:
    """For a part of a batch: every request's loss (R,) and own update, and the targets' inputs and
    outputs with each request's own update (with `edited`) or without any."""

    losses: Tensor
    updates: dict[str, LowRankUpdate]
    seen: dict[str, LayerRows]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        runs: EditedForwards,
        first: int,
        part: Batch,
        own_updates: OwnUpdates,
        edited: bool,
    ) -> _EditedForward:
        """Of the part that begins with request `first`."""
        rows, losses = runs.captured(first, part)
        updates = own_updates(first, part, rows, losses)
        with Ranks.of(model).agree("look at every request's update"):
            refuse_non_finite(updates)
        return cls(losses, updates, runs.own(first, part, rows, updates if edited else {}))

    def asked(self, name: str) -> Tensor:
        """(n, out), fp32: what each request's own update adds at the rows that its own run has."""
        seen = self.seen[name]
        d = self.updates[name].added(seen.x, route=seen.request)
        return d.masked_fill(seen.after.unsqueeze(1), 0.0)

    def asked_now(
        self, name: str, now: LayerRows, combined: LowRankUpdate
    ) -> tuple[LayerRows, Tensor]:
        """The rows of a run with the update `combined` for all requests, and what is to be added
        there so that the target's outputs are those of each request's own run.

        An update may make a router send a token to other experts. Such a token asks of the expert
        where it was what it asked in its own run, and nothing of the others.
        """
        was = self.seen[name]
        if torch.equal(was.token, now.token):
            return now, was.y.float() - now.y.float() + combined.added(now.x)
        moved = ~torch.isin(was.token, now.token)
        stayed = was.taken(~moved)
        stayed = stayed.taken(stayed.token.argsort())
        here = now.taken(torch.isin(now.token, was.token))
        here = here.taken(here.token.argsort())
        d_here = stayed.y.float() - here.y.float() + combined.added(here.x)
        both = LayerRows.cat([here, was.taken(moved)])
        return both, torch.cat([d_here, self.asked(name)[moved]])


def _forms(
    targets: Sequence[Target],
    batch: Batch,
    options: Aggregate,
    limit: int,
    preserved: PreservedInputs | None,
) -> tuple[dict[str, bool], int]:
    """Which targets' systems are solved by rows, and how many bytes of `limit` are then left.

    Each has the form of lower order. If that does not fit, every target has the form that needs
    less memory. Raises UpdateError, with the figures, if that does not fit either.
    """
    n = batch.n_tokens + (int(batch.after_mask(batch.width).sum()) if options.goes_on else 0)
    still = {} if preserved is None else preserved.of
    by_rows, needs = {}, {}
    for target in targets:
        of = still.get(target.name)
        n_preserved = 0 if of is None else of.count
        by_rows[target.name] = n + n_preserved <= target.in_features
        kept_as_rows = of is None or of.rows is not None
        needs[target.name] = (
            bytes_by_inputs(target),
            bytes_by_rows(target, n, n_preserved) if kept_as_rows else math.inf,
        )
    least = min(bytes_for_a_token(targets) * batch.width, limit)
    if sum(needs[name][form] for name, form in by_rows.items()) + least > limit:
        by_rows = {name: rows < inputs for name, (inputs, rows) in needs.items()}
    need = sum(needs[name][form] for name, form in by_rows.items())
    if need + least > limit:
        raise UpdateError(
            f"the systems of {batch.n_requests} requests need {_mib(need + least)} MiB, and "
            f"batch_limit is {_mib(limit)} MiB; nothing was written. Raise batch_limit, edit "
            "fewer requests at once, or set `aggregate: sum`"
        )
    return by_rows, limit - int(need)


def _parts(batch: Batch, tokens: int) -> list[tuple[int, Batch]]:
    """The parts of `batch`, each with the number of its first request."""
    first, parts = 0, []
    for part in batch.parts(tokens):
        parts.append((first, part))
        first += part.n_requests
    return parts


def _weighed(captured: Mapping[str, TokenRows], shares: Tensor) -> dict[str, TokenRows]:
    """Rows with every request's gradient weighed by its share (R,) of all labels."""
    return {
        name: replace(
            rows,
            delta=rows.delta.float()
            * shares.to(rows.delta.device)[rows.request.to(rows.delta.device)].unsqueeze(1),
        )
        for name, rows in captured.items()
    }


def _mib(size: float) -> int:
    return math.ceil(size / 2**20)
