"""A request's rows made few and half as wide, as far as the request's own answer stays what it was.

Knows updates and batches; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.forward.batch import IGNORED, Batch
from easyedit_mend_parallel.forward.capture import evaluating
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

ERRORS = (0.1, 0.03, 0.0)
"""How far a request's compressed update may be from it, as a share of its norm (Frobenius): the
first with which the answer stays is taken; 0 keeps every direction."""
SAME_ANSWER = 0.05
"""How far apart the log-probabilities of a label may be, with the rows and with fewer of them."""
KEPT_AS = torch.float16


@torch.no_grad()
def compressed(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    updates: Mapping[str, LowRankUpdate],
) -> dict[str, LowRankUpdate]:
    """`updates` of the requests of `batch` with fewer rows for each request, in half precision.

    Of each request's update the largest directions are kept (Eckart and Young 1936), as many as
    `ERRORS` allow while every label's argmax stays and its log-probability stays within
    `SAME_ANSWER`, seen in a forward in which each request feels its own. Where no choice of rows
    in half precision does that, the request keeps its rows as they were.
    """
    by_name = {target.name: target for target in targets}
    whole = {name: _split(update, batch.n_requests) for name, update in updates.items()}
    wanted, wanted_best = _labels(model, by_name, batch, updates)
    choice: list[dict[str, LowRankUpdate]] = [
        {name: parts[number] for name, parts in whole.items()} for number in range(batch.n_requests)
    ]
    open_requests = set(range(batch.n_requests))
    for error in ERRORS:
        tried = {
            number: {name: fewer_rows(parts[number], error) for name, parts in whole.items()}
            for number in sorted(open_requests)
        }
        now = _joined([tried.get(number, choice[number]) for number in range(batch.n_requests)])
        found, found_best = _labels(model, by_name, batch, now)
        apart = (found - wanted).abs() > SAME_ANSWER
        # finite, too: half precision can overflow
        bad = apart | (found_best != wanted_best) | ~torch.isfinite(found)
        sequence, _ = (batch.labels != IGNORED).nonzero(as_tuple=True)
        failed = set(batch.request[sequence[bad]].tolist())
        for number in open_requests - failed:
            choice[number] = tried[number]
        open_requests &= failed
        if not open_requests:
            break
    return _joined(choice)


@torch.no_grad()
def fewer_rows(update: LowRankUpdate, error: float) -> LowRankUpdate:
    """One request's update with its largest directions alone: the least rank that is within
    `error` of it, relative (Frobenius), at least one row, in `KEPT_AS`."""
    live = (update.keys != 0).any(1) & (update.values != 0).any(1)
    keys, values = update.keys[live].double(), update.values[live].double()
    if not len(keys):
        return replace(
            update,
            keys=update.keys[:0].to(KEPT_AS),
            values=update.values[:0].to(KEPT_AS),
            request=update.request[:0],
        )
    key_basis, key_rest = torch.linalg.qr(keys.T)
    value_basis, value_rest = torch.linalg.qr(values.T)
    left, sizes, right = torch.linalg.svd(value_rest @ key_rest.T, full_matrices=False)
    tail = sizes.square().flip(0).cumsum(0).flip(0).sqrt()  # ‖what is lost‖ with rank 0, 1, ...
    enough = torch.cat([tail[1:], tail.new_zeros(1)]) <= error * tail[0]
    rank = int(enough.int().argmax()) + 1
    root = sizes[:rank].sqrt()[:, None]
    return LowRankUpdate(
        (root * (right[:rank] @ key_basis.T)).to(KEPT_AS),
        (root * (left[:, :rank].T @ value_basis.T)).to(KEPT_AS),
        update.request[:1].repeat(rank),
    )


def _split(update: LowRankUpdate, n_requests: int) -> list[LowRankUpdate]:
    """The rows of each request, each with its number."""
    parts = []
    for number in range(n_requests):
        mine = update.request == number
        parts.append(LowRankUpdate(update.keys[mine], update.values[mine], update.request[mine]))
    return parts


def _joined(of_requests: Sequence[Mapping[str, LowRankUpdate]]) -> dict[str, LowRankUpdate]:
    """The updates of all requests as one for each target, in the widest dtype among them."""
    joined = {}
    for name in of_requests[0]:
        parts = [updates[name] for updates in of_requests]
        joined[name] = LowRankUpdate(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.values for part in parts]),
            torch.cat([part.request for part in parts]),
        )
    return joined


def _labels(
    model: nn.Module,
    targets: Mapping[str, Target],
    batch: Batch,
    updates: Mapping[str, LowRankUpdate],
) -> tuple[Tensor, Tensor]:
    """Each label's log-probability (n,), and the token predicted there, where each request feels
    its own rows; on the CPU."""
    sequence, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
    wide = {
        name: LowRankUpdate(one.keys.float(), one.values.float(), one.request)
        for name, one in updates.items()
    }
    with evaluating(model), attached(model, targets, wide, route=batch.request):
        logits = batch.predictions(model, sequence, position).float().log_softmax(-1)
    label = batch.labels[sequence, position].to(logits.device)
    return logits.gather(1, label[:, None])[:, 0].cpu(), logits.argmax(-1).cpu()
