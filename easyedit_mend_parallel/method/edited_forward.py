"""Forward passes of one batch: unedited and captured; with each request's own update; with one
update for all. Later passes start at the lowest target's block, from the hidden states of the
first, if the model allows it. Does not know how the rows are used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import MendParallelError, TrunkError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import LayerRows, TokenRows, capture, layer_rows
from easyedit_mend_parallel.forward.trunk import Trunk, nearly_equal
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

log = logging.getLogger(__name__)


class EditedForwards:
    """Forward passes of batches, identified by number: `captured` is the first, `own` the second.

    The hidden states of the batch captured last are in memory, and those of earlier ones up to
    `states_limit` bytes; a batch whose states are not there runs whole.

    Every batch checks whether later passes may start from the hidden states of the first: its first
    sequence runs again, next to the others and without an update, and each target must get the same
    input for it as in the first pass. If one does not, this and all later batches run whole.

    With `after`, tokens after a target have rows too, and no request's own update acts there.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        states_limit: int = 0,
        *,
        after: bool = False,
    ) -> None:
        self._model = model
        self._after = after
        self._targets = targets
        self._by_name = {target.name: target for target in targets}
        self._trunk = _trunk_below(model, targets)
        self._states_limit = states_limit
        self._states: dict[int, Tensor] = {}

    def captured(self, number: int, batch: Batch) -> tuple[dict[str, TokenRows], Tensor]:
        """`capture` of the batch; stores its hidden states for later passes.

        `number` identifies the batch.
        """
        if self._trunk is None:
            return capture(self._model, self._targets, batch)
        if number in self._states:
            batch = self._trunk.resumed(self._model, batch, self._states[number])
            return capture(self._model, self._targets, batch)
        with self._trunk.caught(self._model) as states:
            found = capture(self._model, self._targets, batch)
        # The first batch of a model is followed by passes that check the model, of other shapes.
        own = [state for state in states if state.shape[:2] == batch.labels.shape]
        if len(own) == 1:
            if sum(kept.nbytes for kept in self._states.values()) > self._states_limit:
                self._states.popitem()  # the last one, which did not fit
            self._states[number] = own[0]
        return found

    def own(
        self,
        number: int,
        batch: Batch,
        rows: Mapping[str, TokenRows],
        updates: Mapping[str, LowRankUpdate],
    ) -> dict[str, LayerRows]:
        """`layer_rows` of a forward pass with each request's own rows of `updates`, if any.

        `rows` are those that `captured` gave for the same batch.
        """
        if self._trunk is not None and number in self._states:
            found = self._resumed(self._trunk, self._states[number], batch, rows, updates)
            if found is not None:
                return found
            log.info("the model is run whole: resumed, its targets see something else")
            self._trunk = None
        with attached(self._model, self._by_name, updates, batch.request, self._still(batch)):
            return layer_rows(self._model, self._targets, batch, after=self._after)

    def combined(
        self, number: int, batch: Batch, update: Mapping[str, LowRankUpdate]
    ) -> dict[str, LayerRows]:
        """`layer_rows` of a forward pass with `update` for all requests; called after `own`."""
        if self._trunk is not None and number in self._states:
            batch = self._trunk.resumed(self._model, batch, self._states[number])
        with attached(self._model, self._by_name, update):
            return layer_rows(self._model, self._targets, batch, after=self._after)

    def _still(self, batch: Batch) -> Tensor | None:
        """(B, T): the tokens at which a request's own update does not act."""
        return batch.after_mask(batch.labels.shape[1]) if self._after else None

    def _resumed(
        self,
        trunk: Trunk,
        states: Tensor,
        batch: Batch,
        rows: Mapping[str, TokenRows],
        updates: Mapping[str, LowRankUpdate],
    ) -> dict[str, LayerRows] | None:
        """The second pass, from `states`; None if the sequence without an update differs."""
        nobody = batch.n_requests
        again = torch.tensor([*range(len(batch.labels)), 0])
        watched = batch.taken(again, torch.cat([batch.request, torch.tensor([nobody])]))
        watched = trunk.resumed(self._model, watched, states[again.to(states.device)])
        try:
            with attached(
                self._model, self._by_name, updates, watched.request, self._still(watched)
            ):
                seen = layer_rows(self._model, self._targets, watched, after=self._after)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, MendParallelError) as error:
            # Some models look at the token ids, too. What fails for another reason fails again
            # when the model is run whole.
            log.info("the model cannot be resumed: %s", error)
            return None
        found = {}
        length = batch.labels.shape[1]
        kept = batch.token_mask(length)[0]
        if self._after:
            kept = kept | batch.after_mask(length)[0]
        for name, both in seen.items():
            own = rows[name]
            mine = own.token < length
            was = own.x[mine][kept.to(own.token.device)[own.token[mine]]]
            now = both.x[both.request == nobody]
            if was.shape != now.shape or (len(was) and not nearly_equal(was, now)):
                return None
            mine = both.request != nobody
            found[name] = both.taken(mine)
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
