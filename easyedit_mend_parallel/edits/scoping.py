"""Makes scoped updates: a request's rows with the scope that decides where they apply.

Knows how rows are proposed and compressed, and what a scope compares. Changes no model.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError, UpdateError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.forward.cached_trunk import checksum
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.trunk import is_above
from easyedit_mend_parallel.method.compression import KEPT_AS, compressed
from easyedit_mend_parallel.method.least_squares import bytes_for_a_token
from easyedit_mend_parallel.method.mend import OwnUpdates, Proposal
from easyedit_mend_parallel.method.untrained_scope import scope_blocks, untrained_scope
from easyedit_mend_parallel.weights.gate import base_of
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.scope import (
    Scope,
    ScopedRequest,
    ScopedUpdate,
    stands_in,
    words_of,
)
from easyedit_mend_parallel.weights.scoped_memory import size_of
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory
from easyedit_mend_parallel.weights.subject_words import found_subject
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 32
"""Maximum number of requests whose rows are in memory uncompressed."""


@dataclass(frozen=True)
class Scoping:
    """Makes scoped updates for one model: has the scope and the tokenizer, and how many bytes the
    model's scoped edits may take in memory (None: as many as before)."""

    scope: Scope
    tokenizer: Any
    limit: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: Any,
        targets: Sequence[Target],
        scope: Scope | None = None,
        lines: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Scoping:
        """Choose the scope: `scope` (the archive's), or else that of the model's scoped edits, or
        else a new one that needs no training, made from `lines` of unrelated text.

        Raises TargetError if there is no block below the targets, and UpdateError for a scope that
        was trained for other blocks.
        """
        name, blocks = scope_blocks(model, targets)
        if scope is None:
            memory = scoped_memory(model)
            if memory is not None and memory.scope.common is not None:
                return cls(memory.scope, tokenizer, limit)
            log.warning(
                "no trained scope: an edit applies where its request's subject is named and where "
                "hidden states are similar. An archive gets a trained scope by "
                "`mend-parallel train CONFIG --train FACTS --scope-only`"
            )
            scope = untrained_scope(model, tokenizer, targets, lines)
            return cls(scope, tokenizer, limit)
        if scope.blocks_name != name or scope.blocks[-1] != blocks[-1]:
            raise UpdateError(
                f"the archive's scope was trained for targets from block {scope.blocks[-1]} of "
                f"{scope.blocks_name} on, and inner_params begin in block {blocks[-1]} of {name}: "
                "name the targets that it was trained for, or train another scope "
                "(`mend-parallel train --scope-only`)"
            )
        return cls(scope, tokenizer, limit)

    def propose(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        batch: Batch,
        requests: Sequence[Request],
        own_updates: OwnUpdates,
        limit: int,
    ) -> Proposal:
        """Compute every request's own update on the base, compressed, with its scope.

        Writes nothing. Holds at most `limit` bytes of rows at a time. Raises what `capture` and
        `own_updates` raise.
        """
        self._refuse_changed(model)
        tokens = min(limit // bytes_for_a_token(targets), REQUESTS_AT_ONCE * batch.width)
        parts: dict[str, list[LowRankUpdate]] = {target.name: [] for target in targets}
        losses, first = [], 0
        with base_of(model):
            for part in batch.parts(tokens):
                rows, loss = capture(model, targets, part)
                own = own_updates(first, part, rows, loss)
                for name, one in compressed(model, targets, part, own).items():
                    parts[name].append(LowRankUpdate(one.keys, one.values, one.request + first))
                losses.append(loss)
                first += part.n_requests
        joined = {
            name: LowRankUpdate(
                torch.cat([one.keys for one in of]),
                torch.cat([one.values for one in of]),
                torch.cat([one.request for one in of]),
            )
            for name, of in parts.items()
        }
        scoped: dict[str, LowRankUpdate] = {**self.scoped(model, joined, requests)}
        return Proposal(scoped, torch.cat(losses))

    def scoped(
        self,
        model: nn.Module,
        updates: Mapping[str, LowRankUpdate],
        requests: Sequence[Request],
    ) -> dict[str, ScopedUpdate]:
        """`updates`, whose rows have the index of their request in `requests`, with the scopes."""
        note_below(model, self.scope)
        found = self.scoped_requests(model, requests)
        return {
            name: ScopedUpdate(
                _narrow(update.keys),
                _narrow(update.values),
                update.request,
                requests=found,
                scope=self.scope,
                read=self.tokenizer.decode,
                limit=self.limit,
            )
            for name, update in updates.items()
        }

    def scoped_requests(
        self, model: nn.Module, requests: Sequence[Request]
    ) -> tuple[ScopedRequest, ...]:
        """The hidden states of each prompt in the base, with which the scope compares sequences."""
        ids = [self.tokenizer(request.prompt)["input_ids"] for request in requests]
        scope = self.scope
        with base_of(model):
            states = dict(block_states(model, scope.blocks_name, scope.blocks, ids))
        found = []
        for number, request in enumerate(requests):
            here = states[number].to(scope.mean.device)
            keys, weights = scope.keys(here)
            subject = _subject(request)
            subject = subject or found_subject(scope, here, ids[number], self.tokenizer.decode)
            found.append(
                ScopedRequest(
                    request.prompt,
                    request.target_new,
                    keys,
                    weights,
                    subject,
                    self._answers(request),
                )
            )
        return tuple(found)

    def _refuse_changed(self, model: nn.Module) -> None:
        note_below(model, self.scope)
        if _versions[model] != versions_below(model, self.scope):
            raise UpdateError(
                f"weights below {self.scope.blocks_name}.{self.scope.blocks[-1]} have changed "
                "since the model's first scoped edit, so the scopes of those edits no longer fit. "
                "Undo them (rollback_all), or load the base again"
            )

    def _answers(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """The target's token ids after a word, and by itself."""
        written = (request.target_text, request.target_text.lstrip())
        special = set(self.tokenizer.all_special_ids)
        ids = [tuple(self.tokenizer(text)["input_ids"]) for text in written]
        plain = [tuple(token for token in one if token not in special) for one in ids]
        return tuple(dict.fromkeys(one for one in plain if one))


@dataclass(frozen=True)
class Near:
    """How near one text is to one scoped request: its `logit`, and the logit at which it fires.
    `subject` are the words of the request's subject, named or found; empty without one."""

    text: str
    prompt: str
    subject: str
    logit: float
    threshold: float


def nearest(model: nn.Module, tokenizer: Any, texts: Sequence[str], most: int = 3) -> list[Near]:
    """For each text, at most `most` scoped requests: those nearest to firing in it."""
    memory = scoped_memory(model)
    if memory is None:
        return []
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with base_of(model):
        states = dict(block_states(model, memory.scope.blocks_name, memory.scope.blocks, ids))
    return [
        Near(text, request.prompt, " ".join(request.subject), logit, threshold)
        for number, text in enumerate(texts)
        for request, logit, threshold in memory.nearest(
            states[number].to(memory.scope.mean.device), ids[number], most
        )
    ]


def refuse_full(model: nn.Module, updates: Mapping[str, LowRankUpdate], limit: int) -> None:
    """Raise UpdateError if the keys of the model's scoped edits, which stay in memory, exceed
    `limit` bytes together with those of `updates`."""
    memory = scoped_memory(model)
    taken = 0 if memory is None else memory.key_bytes
    requests = {
        r: None for u in updates.values() if isinstance(u, ScopedUpdate) for r in u.requests
    }
    new = sum(size_of(request.keys) for request in requests)
    if taken + new > limit:
        raise UpdateError(
            f"the keys of the scoped edits would take {(taken + new) / 2**20:.1f} MiB, and "
            f"scope_memory is {limit / 2**20:.1f} MiB; nothing was changed. Raise scope_memory, or "
            f"undo some of the {0 if memory is None else len(memory)} requests"
        )


def say_replaced(model: nn.Module, requests: Sequence[Request]) -> None:
    """Log which scoped edits of the model new `requests` replace: those with the same prompt."""
    memory = scoped_memory(model)
    if memory is None:
        return
    for request in requests:
        before = memory.replaced(request.prompt)
        if before is None:
            continue
        other = before.target.strip() != request.target_new.strip()
        log.warning(
            "%r -> %r replaces %s; undone, it comes back",
            request.prompt,
            request.target_new,
            f"the edit to {before.target!r}, which contradicts it" if other else "the same edit",
        )


def about_below(model: nn.Module, scope: Scope, whole: bool = True) -> dict[str, Any]:
    """A checksum of the weights below the lowest target, for `check_below`.

    Weights that are split between processes have one if all processes call this, with `whole`."""
    name, lowest = scope.blocks_name, scope.blocks[-1]
    if not whole and not Ranks.of(model).alone:
        return {"blocks": name, "lowest": lowest, "below": None, "dtype": _dtype(model)}
    seen = versions_below(model, scope)
    known = _sums.get(model)
    if known is None or known[0] != (name, lowest, seen):
        _sums[model] = (name, lowest, seen), checksum(model, f"{name}.", lowest, None)
    return {"blocks": name, "lowest": lowest, "below": _sums[model][1], "dtype": _dtype(model)}


def check_below(model: nn.Module, about: Mapping[str, Any], what: str) -> None:
    """Raise EditError if weights below the lowest target are not those of the model in which the
    edit was made. A model in another dtype is not compared, nor is an edit that one of several
    processes saved. Every process of a model that is split between them has to call this."""
    if about["below"] is None:
        log.warning("%s: the blocks below were not compared: it has no checksum of them", what)
        return
    if about["dtype"] != _dtype(model):
        log.warning("%s: the blocks below were not compared: they have another dtype", what)
        return
    now = checksum(model, f"{about['blocks']}.", about["lowest"], None)
    if now != about["below"]:
        raise EditError(
            f"{what} was made on a model whose weights below {about['blocks']}.{about['lowest']} "
            "had other bits, so its scope does not fit this model. Load "
            "that base; check=False applies the edit anyway"
        )


def note_below(model: nn.Module, scope: Scope) -> None:
    """Remember the version counters of the weights below the lowest target, for later edits.

    Does nothing if the model already has scoped edits."""
    if scoped_memory(model) is None or model not in _versions:
        _versions[model] = versions_below(model, scope)


def versions_below(model: nn.Module, scope: Scope) -> tuple[int, ...]:
    """The version counters of the weights below the lowest target: a write changes one."""
    first = f"{scope.blocks_name}."
    return tuple(
        parameter._version
        for name, parameter in model.named_parameters()
        if not is_above(name, first, scope.blocks[-1])
    )


_sums: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()
"""The checksum of each model's weights below the lowest target, and when it was made."""


_versions: weakref.WeakKeyDictionary[nn.Module, tuple[int, ...]] = weakref.WeakKeyDictionary()
"""The result of `versions_below` before each model's first scoped edit."""


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype)


def _narrow(rows: Tensor) -> Tensor:
    """`rows` in half precision if that loses no bit, otherwise unchanged."""
    narrow = rows.to(KEPT_AS)
    return narrow if torch.equal(narrow.float(), rows.float()) else rows


def _subject(request: Request) -> tuple[str, ...]:
    """The words of the request's subject; empty if its own prompt does not contain them."""
    subject = words_of(str(request.other.get("subject") or ""))
    return subject if subject and stands_in(words_of(request.prompt), subject) else ()
