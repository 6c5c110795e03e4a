"""Editing a model with MEND, without EasyEdit: requests in, an edited model and a way back out.

The last room that sees hyperparameters; everything it calls takes targets, rows and updates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.archive import WAYS_OUT, load_archive
from easyedit_mend_parallel.batch import Batch, make_batch, without_special_tokens
from easyedit_mend_parallel.errors import ArchiveError, RequestError, TargetError
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.ledger import Entry, Ledger
from easyedit_mend_parallel.mend import Proposal, propose
from easyedit_mend_parallel.placement import Placement, network_home, place
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.requests import Request, as_requests
from easyedit_mend_parallel.stores import prepare
from easyedit_mend_parallel.target import find_targets
from easyedit_mend_parallel.untrained import (
    Reach,
    identity_network,
    propose_untrained,
    say_unanswered,
)
from easyedit_mend_parallel.update import LowRankUpdate
from easyedit_mend_parallel.weight_norm import weight_norm


@dataclass(frozen=True)
class EditResult:
    """What an edit did, and the way back. Holds names and low-rank rows, no model.

    `updates` is {target name: update}, on the device of each target; `losses` has each request's
    mean negative log-likelihood before the edit, `losses_after` the same after it where it was
    asked for. As long as the result is held, the edit can be rolled back by itself.
    """

    requests: list[Request]
    updates: dict[str, LowRankUpdate]
    placements: dict[str, Placement]
    losses: list[float]
    losses_after: list[float] | None
    seconds: float
    entry: Entry

    def rollback(self) -> None:
        """Take the edit out of the model: every weight gets back the bits it had, to the last.

        With later edits in the model, they stay (see `Entry.undo`). Calling it again does
        nothing.
        """
        self.entry.undo()


class MendParallel:
    """Edits `model` in place, wherever its weights lie: the weights themselves, or with
    `apply: output` what their layers put out.

    `model` is any transformers model, dispatched by accelerate or not, or split between processes
    by a tensor-parallel plan; then every process makes the same calls. `tokenizer` is its tokenizer
    (not changed); `hparams` name the targets, the network's options and the trained archive. A
    `network` that is given is used as it is, and no archive is read. With `untrained: true` in
    the hyperparameters the network is the identity, and each request gets the step along its
    gradient that makes its target the model's answer.

    Raises TargetError, PlacementError, UpdateError or ArchiveError where the model cannot be
    edited with these hyperparameters; the model is not changed by that.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hparams: MendHparams,
        *,
        network: Hypernetwork | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.apply = hparams.apply
        self.untrained = hparams.untrained
        self._max_relative_norm = hparams.max_relative_norm
        self._step_margin = hparams.step_margin
        self._special_tokens_in_labels = hparams.special_tokens_in_labels
        self._shadow_limit = hparams.shadow_bytes
        with Ranks.of(model).together("prepare the editor"):
            self.targets = find_targets(model, hparams.inner_params)
            self._prepare()  # refuses, before anything is computed, what cannot be edited
            self.network = network or self._read_network(hparams)
            _refuse_other_targets(self.network, hparams.inner_params)

    def edit(
        self,
        requests: Request | Mapping[str, Any] | Sequence[Request | Mapping[str, Any]],
        *,
        losses_after: bool = False,
    ) -> EditResult:
        """Edit the model so that each request's prompt is followed by its target.

        Several requests are one update: the sum of their updates, each from its own loss. The
        model is changed wholly or not at all. `losses_after` costs one more forward pass, and
        `untrained: true` one for each step tried and one for a last look.

        Raises RequestError, TargetError, PlacementError or UpdateError; nothing is changed then.
        """
        started = time.perf_counter()
        asked = as_requests(requests)
        ledger = Ledger.of(self.model)
        with ledger.lock, torch.no_grad():
            ranks = Ranks.of(self.model)
            with ranks.together("make the batch"):
                self._prepare()
                batch = make_batch(
                    self.model,
                    self.tokenizer,
                    asked,
                    special_tokens_in_labels=self._special_tokens_in_labels,
                )
                answers = replace(
                    batch,
                    labels=without_special_tokens(batch.labels, self.tokenizer.all_special_ids),
                )
            if not ranks.alone and not ranks.same(batch.fingerprint()):
                raise RequestError(
                    "the ranks that hold this model were given different requests: give every "
                    "rank the same ones, in the same order"
                )
            proposal = self._propose(batch, answers, asked)
            placements = {target.name: place(self.model, target) for target in self.targets}
            losses = proposal.losses.tolist()
            entry = ledger.change(self.targets, proposal.updates, self.apply)
            try:
                if self.untrained:
                    say_unanswered(self.model, answers, asked)
                after = batch.losses_on(self.model).tolist() if losses_after else None
            except BaseException:
                entry.undo(alone=True)  # inside the forward, nobody knows where other ranks are
                raise
        return EditResult(
            requests=asked,
            updates=proposal.updates,
            placements=placements,
            losses=losses,
            losses_after=after,
            seconds=time.perf_counter() - started,
            entry=entry,
        )

    def rollback_all(self) -> None:
        """Give every edited weight of the model the bits it had before its first edit."""
        rollback_all(self.model)

    def _propose(self, batch: Batch, answers: Batch, asked: Sequence[Request]) -> Proposal:
        if not self.untrained:
            return propose(self.model, self.targets, batch, self.network)
        norms = {target.name: weight_norm(self.model, target) for target in self.targets}
        limits = {name: self._max_relative_norm * norm for name, norm in norms.items()}
        reach = Reach(limits, self._step_margin)
        return propose_untrained(
            self.model, self.targets, batch, answers, self.network, reach, asked
        )

    def _prepare(self) -> None:
        prepare(self.model, self.targets, self.apply, self._shadow_limit)

    def _read_network(self, hparams: MendHparams) -> Hypernetwork:
        archive = None if hparams.archive is None else load_archive(hparams.archive)
        if archive is not None:
            archive.say_other_labels(hparams.special_tokens_in_labels)
        if self.untrained:
            network = identity_network(self.targets, hparams.network_config(), archive)
        elif archive is None:
            raise ArchiveError(
                f"archive is null, and MEND edits with a trained hypernetwork: {WAYS_OUT}"
            )
        else:
            with torch.device("meta"):
                network = Hypernetwork(self.targets, hparams.network_config())
            archive.load_into(network)
        device = network_home(self.model, self.targets, hparams.network_device)
        return network.to(device).eval().requires_grad_(False)


def _refuse_other_targets(network: Hypernetwork, inner_params: Sequence[str]) -> None:
    made_for = [target.name for target in network.targets]
    if sorted(made_for) != sorted(inner_params):
        odd = sorted(set(made_for) ^ set(inner_params))
        raise TargetError(
            f"the network was made for other targets than inner_params names; the two differ in "
            f"{', '.join(odd)}"
        )


def rollback_all(model: nn.Module) -> None:
    """Undo every edit of `model` that this package made: each weight gets back, to the bit, what
    it held before its first edit, however many edits there were and whoever made them."""
    Ledger.of(model).undo_all()
