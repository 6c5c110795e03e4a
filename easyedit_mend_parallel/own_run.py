"""Two runs of one batch: as the model is, captured, and with every request under its own update.

The second starts at the lowest target's block, with the hidden states of the first, where the
model allows it. Knows nothing of what is made of the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.batch import Batch
from easyedit_mend_parallel.capture import TokenRows, capture, inputs_of
from easyedit_mend_parallel.errors import TrunkError
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.trunk import Trunk
from easyedit_mend_parallel.update import LowRankUpdate, attached

log = logging.getLogger(__name__)

SAME = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far apart two runs of one text may be, of the largest input; half precision: 5e-2."""


class TwoRuns:
    """`captured` is the first run of a batch, `inputs` the second. For one batch after another.

    Whether the second may start from the hidden states of the first is seen in every batch: its
    first sequence is run once more beside the others with nothing added, and each target has to
    see of it what it saw in the first run. Where one does not, this and all later batches are run
    whole.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self._model = model
        self._targets = targets
        self._by_name = {target.name: target for target in targets}
        self._trunk = _trunk_below(model, targets)
        self._states: Tensor | None = None

    def captured(self, batch: Batch) -> tuple[dict[str, TokenRows], Tensor]:
        """`capture` of the batch, which leaves its hidden states here until `inputs` is called."""
        if self._trunk is None:
            return capture(self._model, self._targets, batch)
        with self._trunk.caught(self._model) as states:
            found = capture(self._model, self._targets, batch)
        self._states = states[0] if len(states) == 1 else None
        return found

    def inputs(
        self,
        batch: Batch,
        rows: Mapping[str, TokenRows],
        updates: Mapping[str, LowRankUpdate],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """As `inputs_of`, of a run in which each request feels its own rows of `updates`.

        `rows` are those that `captured` gave for the same batch.
        """
        if self._trunk is not None and self._states is not None:
            found = self._resumed(self._trunk, self._states, batch, rows, updates)
            self._states = None
            if found is not None:
                return found
            log.info("the model is run whole: resumed, its targets see something else")
            self._trunk = None
        with attached(self._model, self._by_name, updates, route=batch.request):
            return inputs_of(self._model, self._targets, batch)

    def _resumed(
        self,
        trunk: Trunk,
        states: Tensor,
        batch: Batch,
        rows: Mapping[str, TokenRows],
        updates: Mapping[str, LowRankUpdate],
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        """The second run from `states`; None where the sequence that feels nothing is another."""
        nobody = batch.n_requests
        again = torch.tensor([*range(len(batch.labels)), 0])
        watched = batch.taken(again, torch.cat([batch.request, torch.tensor([nobody])]))
        watched = trunk.resumed(self._model, watched, states[again.to(states.device)])
        with attached(self._model, self._by_name, updates, route=watched.request):
            seen = inputs_of(self._model, self._targets, watched)
        found = {}
        for name, (x, request) in seen.items():
            felt_nothing = (request == nobody).nonzero().flatten()
            was = rows[name].x[: len(rows[name].x) // len(batch.labels)]
            was = was[batch.counted(len(was))[0].nonzero().flatten().to(was.device)]
            now = x[felt_nothing]
            apart = (now.float() - was.float()).abs().max()
            if not apart <= SAME.get(x.dtype, 5e-2) * was.float().abs().max():
                return None
            others = (request != nobody).nonzero().flatten()
            found[name] = x[others], request[others]
        return found


def _trunk_below(model: nn.Module, targets: Sequence[Target]) -> Trunk | None:
    """What both runs share; None where there is nothing, or where several processes run it."""
    if not Ranks.of(model).alone:
        return None
    try:
        trunk = Trunk(model, targets)
    except TrunkError:
        return None
    return trunk if trunk.lowest else None
