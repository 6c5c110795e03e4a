"""Compresses a request's rows, to fewer and in half precision, if the request's answer stays.

Knows updates and batches. Writes nothing into the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.forward.batch import IGNORED, Batch
from easyedit_mend_parallel.forward.capture import evaluating
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached, refuse_non_finite

ERRORS = (0.1, 0.03, 0.0)
"""Relative errors (Frobenius) of a request's compressed update. The first one with which the answer
stays is used; 0 keeps every direction."""
SAME_ANSWER = 0.05
"""Maximum difference of a label's log-probability with all rows and with the compressed rows."""
KEPT_AS = torch.float16


@torch.no_grad()
def compressed(
    model: nn.Module,
    targets: Sequence[Target],
    batch: Batch,
    updates: Mapping[str, LowRankUpdate],
) -> dict[str, LowRankUpdate]:
    """`updates` of the requests of `batch` with fewer rows for each request, in half precision.

    The largest directions of each request's update are kept (Eckart and Young 1936), for the
    largest error in `ERRORS` with which every label keeps its argmax and, within `SAME_ANSWER`, its
    log-probability. A forward pass in which each request has its own update checks that. If no
    choice of rows in half precision passes, the request keeps its rows. Raises UpdateError for an
    update that is not finite.
    """
    refuse_non_finite(updates)
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
        # also checks that it is finite: half precision can overflow
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
    """One request's update with its largest directions only, in `KEPT_AS`: the smallest rank, at
    least 1, whose relative error (Frobenius) is at most `error`."""
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
    """The updates of the single requests, in their order."""
    parts = []
    for number in range(n_requests):
        mine = update.request == number
        parts.append(LowRankUpdate(update.keys[mine], update.values[mine], update.request[mine]))
    return parts


def _joined(of_requests: Sequence[Mapping[str, LowRankUpdate]]) -> dict[str, LowRankUpdate]:
    """One update for each target with the rows of all requests, in the widest of their dtypes."""
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
    """Each label's log-probability (n,) and the token predicted there (n,), on the CPU, from a
    forward pass in which each request has its own rows."""
    sequence, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
    wide = {
        name: LowRankUpdate(one.keys.float(), one.values.float(), one.request)
        for name, one in updates.items()
    }
    with evaluating(model), attached(model, targets, wide, route=batch.request):
        logits = batch.predictions(model, sequence, position).float().log_softmax(-1)
    label = batch.labels[sequence, position].to(logits.device)
    return logits.gather(1, label[:, None])[:, 0].cpu(), logits.argmax(-1).cpu()
