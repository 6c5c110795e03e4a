"""Makes the updates of requests as the hyperparameters say: trained or searched, alone or together.

Writes nothing into the model, and knows nothing of results, files or the ledger's entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from easyedit_mend_parallel.edits.scoping import Scoping
from easyedit_mend_parallel.errors import HparamsError, RequestError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.continuing import with_continuations
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.text_batch import text_ids
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.method.extend_steps import ExtendedSteps
from easyedit_mend_parallel.method.growing_system import SystemOptions
from easyedit_mend_parallel.method.inner_steps import InnerSteps
from easyedit_mend_parallel.method.least_squares import Aggregate, bytes_for_a_token
from easyedit_mend_parallel.method.load import Trained
from easyedit_mend_parallel.method.mend import (
    NetworkUpdates,
    OwnRows,
    OwnUpdates,
    Proposal,
    own_rows,
    propose_batch,
)
from easyedit_mend_parallel.method.preserved_cache import gathered_once
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.method.sequence_edit import Making
from easyedit_mend_parallel.method.step_search import SearchedUpdates, StepSearch
from easyedit_mend_parallel.method.untrained import Downhill, Reach, ShortestSteps
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.norm import weight_norm
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target


class Proposer:
    """Makes updates of `targets` of `model` for batches of requests.

    `trained` has the network, `aggregate` says how several requests become one update, and
    `scoping` is None unless edits are applied by scope. `hparams` give the memory limit and the
    options of the step search.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        targets: Sequence[Target],
        trained: Trained,
        hparams: MendHparams,
        aggregate: Aggregate,
        scoping: Scoping | None,
    ) -> None:
        self._model, self._tokenizer, self._targets = model, tokenizer, targets
        self._trained, self._aggregate, self._scoping = trained, aggregate, scoping
        self._untrained = hparams.untrained
        self._inner_steps = hparams.inner_steps
        self._max_step = hparams.max_step
        self._max_relative_norm = hparams.max_relative_norm
        self._step_margin = hparams.step_margin
        self._limit = hparams.batch_bytes
        self._goes_on = aggregate.goes_on and scoping is None
        self._solves_one = aggregate.solves_one and scoping is None
        config: Any = model.config
        if self._goes_on and config.is_encoder_decoder:
            raise HparamsError(
                "continuation_weight is for decoder-only models: an encoder-decoder model ends "
                "each target itself. Set it to 0"
            )
        self._ids: list[tuple[int, ...]] | None = None

    def propose(self, batch: Batch, asked: Sequence[Request]) -> Proposal:
        """The updates of `batch`, which has the requests `asked`, and their losses before the edit.

        Raises what `propose_batch` and `Scoping.propose` raise.
        """
        own = self._own_updates(asked)
        if self._scoping is not None:
            return self._scoping.propose(self._model, self._targets, batch, asked, own, self._limit)
        return propose_batch(
            self._model,
            self._targets,
            self._continued(batch),
            own,
            self._aggregate,
            limit=self._limit,
            preserved=self._preserved_inputs() if len(asked) > 1 or self._solves_one else None,
        )

    def refuse_ready(self, asked: Sequence[Request], otherwise: bool) -> None:
        """Raise RequestError if an edit with ready inputs would need the text of its prompt.

        `otherwise`: whether the editor has a reason of its own.
        """
        if otherwise or len(asked) != 1 or self._goes_on or self._scoping is not None:
            raise RequestError(
                "inputs belong to one request, whose text alone is not its prompt: give one "
                "request, with `sequence: add`, and without `chat`, `apply: scoped` and "
                "`continuation_weight`"
            )

    def own_rows(self, batch: Batch, asked: Sequence[Request]) -> OwnRows:
        """The rows that the requests of `batch` bring into the systems of a sequence."""
        return own_rows(
            self._model,
            self._targets,
            self._continued(batch),
            self._own_updates(asked),
            limit=self._limit,
            continuation_weight=self._aggregate.continuation_weight if self._goes_on else 0.0,
        )

    def making(self) -> Making:
        """What an `EditSequence` calls to make the parts of a new edit."""
        return Making(self.propose, self.own_rows, self._gathered_inputs)

    def system_options(self) -> SystemOptions:
        """The options of a sequence's systems. Edits are solved together if theirs are equal."""
        options = self._aggregate
        weight = options.preserved_text_weight if options.preserved_text else 0.0
        return SystemOptions(
            options.ridge,
            options.label_weight,
            weight,
            self._trained.fingerprint,
            tuple(self._preserved_ids()),
            options.continuation_weight,
            options.solve_single,
        )

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """`batch` in parts whose token rows fit into `batch_limit`."""
        return batch.parts(self._limit // bytes_for_a_token(self._targets))

    def _continued(self, batch: Batch) -> Batch:
        """`batch` with what follows each target, where systems have rows of that."""
        if not self._goes_on:
            return batch
        return with_continuations(self._model, self._tokenizer, batch)

    def _own_updates(self, asked: Sequence[Request]) -> OwnUpdates:
        """What makes each request's own update: the network, and the search for its step if any."""
        own: OwnUpdates = NetworkUpdates(self._model, self._trained.network)
        if self._inner_steps > 1 and not self._untrained:
            own = InnerSteps(self._model, self._targets, own, self._inner_steps)
        by_name = {target.name: target for target in self._targets}
        if self._untrained:
            norms = {target.name: weight_norm(self._model, target) for target in self._targets}
            limits = {name: self._max_relative_norm * norm for name, norm in norms.items()}
            own = Downhill(self._model, own)
            reach = Reach(limits, self._step_margin)
            search: StepSearch = ShortestSteps(self._model, by_name, reach)
        elif self._max_step > 1:
            search = ExtendedSteps(self._model, by_name, self._max_step)
        else:
            return own
        return SearchedUpdates(self._model, own, search, asked, self._tokenizer.all_special_ids)

    def _preserved_ids(self) -> list[tuple[int, ...]]:
        """The token ids of each line of preserved text that has at least two tokens."""
        if self._ids is None:
            with Ranks.of(self._model).agree("read the text to preserve"):
                lines = self._aggregate.preserved_text
                self._ids = text_ids(self._tokenizer, lines) if lines else []
        return self._ids

    def _preserved_inputs(self) -> PreservedInputs | None:
        """The targets' inputs for preserved text; None where their weight is zero."""
        return self._gathered_inputs() if self._aggregate.preserved_text_weight else None

    def _gathered_inputs(self) -> PreservedInputs | None:
        """The same, also where their weight is zero: a system's ridge is measured by them.

        They are gathered when they are first needed, and again after the model was edited.
        """
        if not self._aggregate.preserved_text:
            return None
        ids = self._preserved_ids()
        key = tuple(ids), Ledger.of(self._model).state
        if self._trained.preserved is None or self._trained.preserved[0] != key:
            found = gathered_once(self._model, self._targets, ids, self._limit)
            self._trained.preserved = key, found
        return self._trained.preserved[1]
