"""The pure way of an edit, whole: requests' batch in, proposed updates out; nothing is written.

What is done with a proposal (written, tried out, trained through) is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from easyedit_mend_parallel.batch import Batch
from easyedit_mend_parallel.capture import capture
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.update import LowRankUpdate


@dataclass(frozen=True)
class Proposal:
    """What MEND would change: an update for each target, on the target's device.

    The update of a batch is the sum of its requests' updates, each made from the request's own
    loss; `losses` (R,) are the requests' losses on the model as it was.
    """

    updates: dict[str, LowRankUpdate]
    losses: Tensor


def propose(
    model: nn.Module, targets: Sequence[Target], batch: Batch, network: Hypernetwork
) -> Proposal:
    """MEND's edit of `batch` (Mitchell et al. 2022, algorithm 2), without writing it.

    Differentiable in the network's parameters when gradients are enabled. Raises what `capture`
    raises.
    """
    rows, losses = capture(model, targets, batch)
    with Ranks.of(model).together("compute the update"):
        updates = network(rows)
    return Proposal(updates, losses)
