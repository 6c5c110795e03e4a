"""`MendParallel`: edits a model with MEND, without EasyEdit, and can undo the edits.

Reads hyperparameters; the modules that it calls take targets, rows and updates.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.edits.proposing import Proposer
from easyedit_mend_parallel.edits.result import EditResult
from easyedit_mend_parallel.edits.scoping import Scoping, refuse_full, say_replaced
from easyedit_mend_parallel.errors import PlacementError, RequestError, UpdateError
from easyedit_mend_parallel.evaluation.verification import Verdict, verify
from easyedit_mend_parallel.files.interrupts import interrupts_held, made_whole
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.calling import refuse_uncallable
from easyedit_mend_parallel.forward.chat import chat_request
from easyedit_mend_parallel.forward.ready_batch import ready_batch
from easyedit_mend_parallel.forward.requests import Request, as_requests, without_repeats
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.load import (
    Trained,
    read_trained,
    refuse_other_targets,
)
from easyedit_mend_parallel.method.mend import Proposal
from easyedit_mend_parallel.method.preserved_text import lines_of
from easyedit_mend_parallel.method.sequence import EditSequence
from easyedit_mend_parallel.method.sequence_edit import SequenceEdit
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.method.unreached import refuse_unreached, say_unreached
from easyedit_mend_parallel.method.untrained import say_unanswered
from easyedit_mend_parallel.method.worse import IGNORE, REFUSE, refuse_worse
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stored import split_code
from easyedit_mend_parallel.weights.stores import prepare
from easyedit_mend_parallel.weights.stores.scoped import SCOPED
from easyedit_mend_parallel.weights.target import find_targets

__all__ = ["EditResult", "MendParallel", "Trained", "rollback_all"]


class MendParallel:
    """Edits `model` in place, on any placement: its weights, or with `apply: output` the outputs of
    their layers.

    `model` is any transformers model, dispatched by accelerate or not, or split between processes
    by a tensor-parallel plan, torch's `fully_shard` or DeepSpeed's ZeRO-3 (`engine.module`); then
    every process makes the same calls.
    `tokenizer` is not changed. `hparams` name the targets, the network's options and the trained
    archive. With `network` no archive is read: it is a hypernetwork, or the `trained` of an earlier
    editor of the same model.
    With `untrained: true` in the hyperparameters the network is the identity, and each request gets
    the step along its gradient after which the model gives its target.

    Raises TargetError, PlacementError, UpdateError or ArchiveError if the model cannot be edited
    with these hyperparameters. The model is then unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hparams: MendHparams,
        *,
        network: Hypernetwork | Trained | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.apply = hparams.apply
        self.untrained = hparams.untrained
        self._on_worse = hparams.on_worse or REFUSE
        self._sequence = hparams.sequence
        self._max_lost = hparams.max_lost
        self._sequence_memory = hparams.sequence_bytes
        self._special_tokens_in_labels = hparams.special_tokens_in_labels
        self._target_space = hparams.target_space
        self._chat = hparams.chat
        self._overlay_limit = hparams.overlay_bytes
        self._scope_limit = hparams.scope_bytes
        ranks = Ranks.of(model)
        if not ranks.alone and not ranks.same(split_code(model)):
            raise PlacementError(
                "the ranks that hold this model split it in different ways: load it on every rank "
                "with the same engine, plan and mesh"
            )
        with ranks.agree("prepare the editor"):
            refuse_uncallable(model)
            if isinstance(network, Hypernetwork):
                network = Trained(network)
            names, config = (
                hparams.targets_and_network()
                if network is None
                else (hparams.inner_params or network.target_names, network.network.config)
            )
            self._named = frozenset(hparams.inner_params or ())
            self.targets = find_targets(model, names)
            self._prepare()  # raises before anything is computed
            self.trained = network or read_trained(
                model,
                self.targets,
                hparams.archive,
                config,
                untrained=hparams.untrained,
                device=hparams.network_device,
                special_tokens_in_labels=hparams.special_tokens_in_labels,
            )
            self.aggregate = hparams.aggregation(self.trained.aggregate)
            refuse_other_targets(self.network, [target.name for target in self.targets])
            self.scoping: Scoping | None = None
            if hparams.apply == SCOPED:
                named = hparams.preserved_text
                lines = None if named is None else lines_of(named)
                self.scoping = Scoping.of(
                    model, tokenizer, self.targets, self.trained.scope, lines, self._scope_limit
                )
                self.trained.scope = self.scoping.scope  # for further editors of the model
        self._proposer = Proposer(
            model, tokenizer, self.targets, self.trained, hparams, self.aggregate, self.scoping
        )
        self._about = asdict(hparams.network_config(self.network.config)) | {
            "alg": hparams.alg,
            "apply": hparams.apply,
            "archive": hparams.archive and Path(hparams.archive).name,
        }

    @property
    def solves_sequences(self) -> bool:
        """Whether a further edit is solved together with earlier ones. If not, it is added."""
        solved = self._sequence == "solve" and self.aggregate.how == "least_squares"
        return solved and self.scoping is None

    @property
    def network(self) -> Hypernetwork:
        return self.trained.network

    def edit(
        self,
        requests: Request | Mapping[str, Any] | Iterable[Request | Mapping[str, Any]],
        *,
        losses_after: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> EditResult:
        """Edit the model so that each request's prompt is followed by its target.

        The updates of several requests are combined into one as `aggregate` in the hyperparameters
        says; with `apply: scoped` each request keeps its own. The model is changed wholly or not at
        all.

        An update after which one of its targets is less likely than before is refused with
        WorseError, unless `on_worse` says otherwise. This check costs one forward pass of the
        requests; without it, `losses_after` costs one. `max_step` above 1 and `untrained: true`
        cost one for each step tried, and `untrained: true` one more after the edit.

        `inputs` are the prompt of one request as a processor makes it, with images (`sequence: add`
        only); its text has to end as the request's prompt does.

        Raises RequestError, TargetError, PlacementError or UpdateError. Nothing is changed then.
        """

        def take_back(result: EditResult) -> None:
            if Ranks.of(self.model).alone:
                result.rollback()

        return made_whole(lambda: self._edited(requests, losses_after, inputs), take_back)

    def _edited(
        self,
        requests: Request | Mapping[str, Any] | Iterable[Request | Mapping[str, Any]],
        losses_after: bool,
        inputs: Mapping[str, Any] | None,
    ) -> EditResult:
        started = time.perf_counter()
        asked = without_repeats(as_requests(requests, self._target_space))
        ledger = Ledger.of(self.model)
        with ledger.lock, torch.no_grad():
            ranks = Ranks.of(self.model)
            with ranks.agree("make the batch"):
                placements = self._prepare()
                batch = self._batch(asked, inputs)
            if not ranks.alone and not ranks.same(batch.fingerprint()):
                raise RequestError(
                    "the ranks that hold this model were given different requests: give every "
                    "rank the same ones, in the same order"
                )
            entry: Entry | SequenceEntry | None = None
            try:
                entry, proposal = self._written(asked, batch)
                refuse_unreached(proposal.updates)
                say_unreached(proposal.updates, self._named)
                after = self._looked_at(asked, batch, proposal, entry, losses_after, ranks)
                return EditResult(
                    requests=asked,
                    updates=proposal.updates,
                    placements=placements,
                    before=proposal.losses,
                    losses_after=after,
                    seconds=time.perf_counter() - started,
                    entry=entry,
                    targets={target.name: target for target in self.targets},
                    read_tokens=partial(batch.tokens, self.tokenizer),
                    hparams=self._about,
                    ask=partial(_ask, self.tokenizer),
                )
            except BaseException:
                if entry is not None and entry.applied:
                    entry.undo(alone=True)  # other ranks may still be in their forward pass
                raise

    def _batch(self, asked: Sequence[Request], inputs: Mapping[str, Any] | None) -> Batch:
        labels = self._special_tokens_in_labels
        if inputs is not None:
            self._proposer.refuse_ready(asked, self._chat or self.solves_sequences)
            return ready_batch(
                self.model, self.tokenizer, asked[0], inputs, special_tokens_in_labels=labels
            )
        if self._chat:
            asked = [chat_request(self.tokenizer, request) for request in asked]
        return make_batch(self.model, self.tokenizer, asked, special_tokens_in_labels=labels)

    def _looked_at(
        self,
        asked: Sequence[Request],
        batch: Batch,
        proposal: Proposal,
        entry: Entry | SequenceEntry,
        losses_after: bool,
        ranks: Ranks,
    ) -> list[float] | None:
        """The losses after the edit, where they are asked for. Raises for an edit that makes its
        targets less likely, after it was undone on every rank."""
        if self.untrained:
            answers = batch.answers(self.tokenizer.all_special_ids)
            say_unanswered(self.model, list(self._proposer.parts(answers)), asked)
        looks = losses_after or self._on_worse != IGNORE
        after = self._losses(batch) if looks else None
        if self._on_worse != IGNORE:
            try:
                with ranks.agree("make every target more likely"):
                    refuse_worse(asked, proposal.losses.tolist(), after or [], self._on_worse)
            except BaseException:
                entry.undo()
                raise
        return after

    def rollback_all(self) -> None:
        """Undo every edit of the model, bit for bit, whichever editor made it."""
        rollback_all(self.model)

    @interrupts_held()
    def verify(self) -> list[Verdict]:
        """A verdict on every request of the model's sequence (`sequence: solve`), oldest first: the
        model's current answer, the target's probability, and whether the edit holds.

        Costs one forward pass for each 32 requests.
        """
        with Ledger.of(self.model).lock:
            requests = [r for one in EditSequence.all_of(self.model) for r in one.requests]
            return verify(self.model, self.tokenizer, requests)

    def earlier_requests(self, result: EditResult) -> list[Request]:
        """The requests of the model's sequence without those of `result`, oldest first."""
        mine = {request.prompt for request in result.requests}
        found = [r for one in EditSequence.all_of(self.model) for r in one.requests]
        return [request for request in found if request.prompt not in mine]

    def _written(
        self, asked: Sequence[Request], batch: Batch
    ) -> tuple[Entry | SequenceEntry, Proposal]:
        """Make the edit and write it: solved together with earlier ones, or added to them."""
        if not self.solves_sequences:
            proposal = self._proposer.propose(batch, asked)
            if self.scoping is not None:
                refuse_full(self.model, proposal.updates, self._scope_limit)
                say_replaced(self.model, asked)
            ledger = Ledger.of(self.model)
            return ledger.change(self.targets, proposal.updates, self.apply), proposal
        options = self._proposer.system_options()
        sequence = EditSequence.of(
            self.model, self.targets, self.apply, options, self._sequence_memory
        )
        earlier = sequence.requests if self._max_lost is not None else []
        held = verify(self.model, self.tokenizer, earlier)
        edit: SequenceEdit | None = None
        try:
            edit, proposal = sequence.add(asked, batch, self._proposer.making())
            entry = SequenceEntry(sequence, edit, weakref.WeakMethod(self._proposer.own_rows))
            if earlier:
                new = {request.prompt for request in asked}
                self._refuse_lost(entry, [one for one in held if one.request.prompt not in new])
            return entry, proposal
        except BaseException:
            if edit is not None and sequence.holds(edit):
                sequence.remove([edit])
            raise

    def _refuse_lost(self, entry: SequenceEntry, before: Sequence[Verdict]) -> None:
        """Undo the edit and raise UpdateError if too many earlier requests are lost."""
        assert self._max_lost is not None
        after = verify(self.model, self.tokenizer, [one.request for one in before])
        lost = [
            now.request.prompt
            for was, now in zip(before, after, strict=True)
            if was.holds and not now.holds
        ]
        if len(lost) > self._max_lost * len(before):
            entry.undo()
            raise UpdateError(
                f"with this edit {len(lost)} of {len(before)} earlier ones would no longer hold, "
                f"more than max_lost: {self._max_lost}: {', '.join(map(repr, lost))}. The model is "
                "as it was. Undo some of them, edit in smaller numbers, or raise max_lost"
            )

    def _prepare(self) -> dict[str, Placement]:
        return prepare(self.model, self.targets, self.apply, self._overlay_limit)

    def _losses(self, batch: Batch) -> list[float]:
        parts = self._proposer.parts(batch)
        return [loss for part in parts for loss in part.losses_on(self.model).tolist()]


@interrupts_held()
def _ask(tokenizer: Any, model: nn.Module, requests: Sequence[Request]) -> list[Verdict]:
    with Ledger.of(model).lock:
        return verify(model, tokenizer, requests)


def rollback_all(model: nn.Module) -> None:
    """Undo every edit of `model` that this package made, bit for bit, whichever editor made it."""
    Ledger.of(model).undo_all()
