"""Editing a model with MEND, without EasyEdit: requests in, an edited model and a way back out.

The last room that sees hyperparameters; everything it calls takes targets, rows and updates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.aggregate import Aggregate, bytes_for_a_token
from easyedit_mend_parallel.archive import load_archive
from easyedit_mend_parallel.batch import Batch, make_batch, make_text_batch
from easyedit_mend_parallel.edits.base import describe_base
from easyedit_mend_parallel.edits.saved import SavedEdit, saved_edit
from easyedit_mend_parallel.errors import (
    ArchiveError,
    EditError,
    HparamsError,
    RequestError,
    TargetError,
)
from easyedit_mend_parallel.held_still import HeldStill, lines_of
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.ledger import Entry, Ledger
from easyedit_mend_parallel.mend import propose_together
from easyedit_mend_parallel.placement import Placement, network_home, place
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.requests import Request, as_requests, without_repeats
from easyedit_mend_parallel.stores import prepare
from easyedit_mend_parallel.target import Target, find_targets
from easyedit_mend_parallel.update import LowRankUpdate


@dataclass(frozen=True)
class EditResult:
    """What an edit did, and the way back. Holds names and low-rank rows, no model.

    `requests` are those that were asked, a repeated one once. `updates` is {target name: update},
    on the device of each target; `losses` has each request's mean negative log-likelihood before
    the edit, `losses_after` the same after it where it was asked for; `seconds` is how long the
    edit took. `tokens` {input of the model: texts} says which token each row came from, `hparams`
    what the network was made with. As long as the result is
    held, the edit can be rolled back by itself.
    """

    requests: list[Request]
    updates: dict[str, LowRankUpdate]
    placements: dict[str, Placement]
    losses: list[float]
    losses_after: list[float] | None
    seconds: float
    entry: Entry
    targets: dict[str, Target]
    tokens: dict[str, list[str]]
    hparams: dict[str, Any]

    @property
    def norms(self) -> dict[str, float]:
        """{target name: ‖ΔW‖ (Frobenius)}, computed when asked for."""
        return {name: float(update.norm()) for name, update in self.updates.items()}

    def saved(self) -> SavedEdit:
        """This edit without its model, to be written to a file or put onto the same base anew.

        Reads every edited weight as it was before the edit, for its checksum. Raises EditError
        where the edit was rolled back or its model is gone: those bits are then known no longer.
        """
        if not self.entry.applied:
            raise EditError(
                "the edit was rolled back, or its model is gone: save it while it is in the model"
            )
        about = {
            "base": describe_base(self.entry, self.targets),
            "losses": self.losses,
            "losses_after": self.losses_after,
            "placements": {
                name: {"device": str(where.device), "kept": where.kept}
                for name, where in self.placements.items()
            },
            "tokens": self.tokens,
            "hparams": self.hparams,
            "seconds": self.seconds,
        }
        return saved_edit(self.targets, self.updates, self.requests, about)

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the edit to `path` (`load_edit` reads it), as `SavedEdit.write` does.

        Raises EditError where the edit was rolled back.
        """
        return self.saved().write(path, half=half)

    def rollback(self) -> None:
        """Take the edit out of the model: every weight gets back the bits it had, to the last.

        With later edits in the model, they stay (see `Entry.undo`). Calling it again does
        nothing.
        """
        self.entry.undo()


@dataclass
class Trained:
    """What was read for one model: its network, what its archive keeps for batches (`Aggregate`'s
    options), and the inputs of unrelated text, once gathered, with the lines they come from."""

    network: Hypernetwork
    aggregate: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[tuple[str, ...], HeldStill] | None = None


class MendParallel:
    """Edits `model` in place, wherever its weights lie: the weights themselves, or with
    `apply: output` what their layers put out.

    `model` is any transformers model, dispatched by accelerate or not, or split between processes
    by a tensor-parallel plan; then every process makes the same calls. `tokenizer` is its tokenizer
    (not changed); `hparams` name the targets, the network's options and the trained archive. A
    `network` that is given is used as it is, and no archive is read; it may be the `trained` of an
    earlier editor of the same model.

    Raises TargetError, PlacementError, UpdateError or ArchiveError where the model cannot be
    edited with these hyperparameters; the model is not changed by that.
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
        self._shadow_limit = hparams.shadow_bytes
        self._about = asdict(hparams.network_config()) | {
            "alg": hparams.alg,
            "apply": hparams.apply,
            "archive": hparams.archive and Path(hparams.archive).name,
        }
        self._batch_limit = hparams.batch_bytes
        with Ranks.of(model).together("prepare the editor"):
            self.targets = find_targets(model, hparams.inner_params)
            self._prepare()  # refuses, before anything is computed, what cannot be edited
            if isinstance(network, Hypernetwork):
                network = Trained(network)
            self.trained = network or self._read_network(hparams)
            self.aggregate = _aggregate(hparams, self.trained)
            _refuse_other_targets(self.network, hparams.inner_params)

    @property
    def network(self) -> Hypernetwork:
        return self.trained.network

    def edit(
        self,
        requests: Request | Mapping[str, Any] | Sequence[Request | Mapping[str, Any]],
        *,
        losses_after: bool = False,
    ) -> EditResult:
        """Edit the model so that each request's prompt is followed by its target.

        Several requests are one update, made of their own updates as `aggregate` in the
        hyperparameters says. The model is changed wholly or not at all. `losses_after` costs one
        more forward pass.

        Raises RequestError, TargetError, PlacementError or UpdateError; nothing is changed then.
        """
        started = time.perf_counter()
        asked = without_repeats(as_requests(requests))
        ledger = Ledger.of(self.model)
        with ledger.lock, torch.no_grad():
            ranks = Ranks.of(self.model)
            with ranks.together("make the batch"):
                self._prepare()
                batch = make_batch(self.model, self.tokenizer, asked)
            if not ranks.alone and not ranks.same(batch.fingerprint()):
                raise RequestError(
                    "the ranks that hold this model were given different requests: give every "
                    "rank the same ones, in the same order"
                )
            proposal = propose_together(
                self.model,
                self.targets,
                batch,
                self.network,
                self.aggregate,
                limit=self._batch_limit,
                held=self._held_still() if len(asked) > 1 else None,
            )
            placements = {target.name: place(self.model, target) for target in self.targets}
            losses = proposal.losses.tolist()
            entry = ledger.change(self.targets, proposal.updates, self.apply)
            try:
                after = self._losses(batch) if losses_after else None
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
            targets={target.name: target for target in self.targets},
            tokens=batch.tokens(self.tokenizer),
            hparams=self._about,
        )

    def rollback_all(self) -> None:
        """Give every edited weight of the model the bits it had before its first edit."""
        rollback_all(self.model)

    def _prepare(self) -> None:
        prepare(self.model, self.targets, self.apply, self._shadow_limit)

    def _losses(self, batch: Batch) -> list[float]:
        return [
            loss
            for part in batch.parts(self._tokens_at_once())
            for loss in part.losses_on(self.model).tolist()
        ]

    def _tokens_at_once(self) -> int:
        return self._batch_limit // bytes_for_a_token(self.targets)

    def _held_still(self) -> HeldStill | None:
        """What the targets see of unrelated text, gathered when a batch first needs it."""
        lines = self.aggregate.held_still
        if not lines or not self.aggregate.held_still_weight:
            return None
        if self.trained.held is None or self.trained.held[0] != lines:
            with Ranks.of(self.model).together("make the batch of text to hold still"):
                batch = make_text_batch(self.model, self.tokenizer, lines)
            parts = batch.parts(self._tokens_at_once())
            self.trained.held = lines, HeldStill.gathered(self.model, self.targets, parts)
        return self.trained.held[1]

    def _read_network(self, hparams: MendHparams) -> Trained:
        if hparams.archive is None:
            raise ArchiveError(
                "archive is null, and MEND edits with a trained hypernetwork: set it to the file "
                "that EasyEdit's EditTrainer wrote for this model and these inner_params"
            )
        archive = load_archive(hparams.archive)
        with torch.device("meta"):
            network = Hypernetwork(self.targets, hparams.network_config())
        archive.load_into(network)
        device = network_home(self.model, self.targets, hparams.network_device)
        kept = archive.header.get("aggregate", {})
        try:
            Aggregate.from_values(kept, f"the archive {hparams.archive} keeps options for batches")
        except HparamsError as error:
            raise ArchiveError(str(error)) from error
        return Trained(network.to(device).eval().requires_grad_(False), kept)


def _aggregate(hparams: MendHparams, trained: Trained) -> Aggregate:
    """How batches are combined, and with least squares also the text that is held still."""
    options = hparams.aggregation(trained.aggregate)
    if options.how != "least_squares":
        return replace(options, held_still=None)
    if options.held_still is None or hparams.held_still is not None:
        options = replace(options, held_still=lines_of(hparams.held_still))
    return options


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
