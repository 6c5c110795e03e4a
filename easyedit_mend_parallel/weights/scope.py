"""A scope: decides from unedited hidden states which request's update applies to a sequence.

Knows tensors and words, and no model, tokenizer or update's rows.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.update import LowRankUpdate

MOST_KEYS = 6
"""Maximum number of tokens of a request with which a sequence is compared: those of the largest
weights."""

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of scripts that are written without spaces: each counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Thresholds:
    """The logits above which a request's scope fires: `subject` if the text contains the request's
    subject, `alias` if the text lacks it, `states` if the request names no subject."""

    subject: float = 0.0
    alias: float = 0.0
    states: float = 0.0


@dataclass(frozen=True)
class Scope:
    """The encoder of a scope, and its thresholds.

    `blocks` are the indices, ascending, of the blocks whose inputs are read, in the model's list of
    blocks `blocks_name`; the last is the lowest target's. Their states, concatenated (width D), are
    standardised by `mean` and `std` (D,), projected by `projection` (d, D) and normalised.
    Token s of a request has the weight softplus(`weigh` · state + `weigh_bias`). A request's logit
    for a sequence is `scale` × (the weighted mean of each of its tokens' best cosine with any token
    of the sequence) + `shift`: late interaction (Khattab and Zaharia 2020), with weights. All fp32.
    `skip_first`: the first token of a text is not compared, since in many models its state is the
    same in every text. `trained` is false for a scope that was fitted to unrelated text. Then
    `common` (n, d) are encoded tokens of that text, and a token's weight is its distance from the
    nearest of them.

    The *relation head* decides for a request whose subject stands in the text as words: it tells
    what is asked of the subject. `relation` (d, D'), or None without one, encodes the last token of
    a prompt, whose state predicts the answer; it reads the last D' numbers of the states, those of
    the lowest target's block. Its logit is `relation_scale` × (the largest cosine
    of that encoding with any token's) + `relation_shift`. With `relation_hidden` (h, D') that head
    has a hidden layer: `relation` is then (d, h), and reads the GELU of `relation_hidden` · state.

    The *subject head* finds the subject of a request that names none (`subject_words.py`): the
    token's logit is `subject` (3D,) · (its state, the next token's, the last token's) +
    `subject_bias`. None without one.
    """

    blocks_name: str
    blocks: tuple[int, ...]
    mean: Tensor
    std: Tensor
    projection: Tensor
    weigh: Tensor
    weigh_bias: Tensor
    scale: float
    shift: float
    thresholds: Thresholds = field(default_factory=Thresholds)
    skip_first: bool = False
    common: Tensor | None = None
    relation: Tensor | None = None
    relation_scale: float = 0.0
    relation_shift: float = 0.0
    relation_hidden: Tensor | None = None
    subject: Tensor | None = None
    subject_bias: float = 0.0

    @property
    def trained(self) -> bool:
        return self.common is None

    def misfit(self) -> str | None:
        """What is wrong with a scope that was read from a file: blocks, shapes or numbers that
        cannot be those of a scope. None if they can."""
        if not self.blocks or self.blocks[0] < 0 or list(self.blocks) != sorted({*self.blocks}):
            return "its blocks are not in ascending order"
        relation, n_keys = self.relation, len(self.projection)
        hidden, subject = self.relation_hidden, self.subject
        shapes = (self.std.shape, self.projection.shape[1:], self.weigh.shape)
        fit = all(shape == (len(self.mean),) for shape in shapes) and self.weigh_bias.numel() == 1
        if self.common is not None:
            fit = fit and self.common.dim() == 2 and self.common.shape[1] == n_keys
        if relation is not None:
            fit = fit and relation.dim() == 2 and len(relation) == n_keys
            reader = relation if hidden is None else hidden
            fit = fit and reader.dim() == 2 and reader.shape[1] <= len(self.mean)
        if hidden is not None:
            fit = fit and relation is not None and relation.shape[1:] == hidden.shape[:1]
        if subject is not None:
            fit = fit and subject.shape == (3 * len(self.mean),)
        if not fit:
            return "its tensors do not fit each other"
        numbers = [value for value in vars(self).values() if isinstance(value, float)]
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        if not all(map(math.isfinite, (*numbers, *vars(self.thresholds).values()))) or not all(
            bool(tensor.isfinite().all()) for tensor in tensors
        ):
            return "not all of its numbers are finite"
        return None

    def standardised(self, states: Tensor) -> Tensor:
        """`states` (..., D), in any dtype, as fp32 on the scope's device. Raises UpdateError where
        the model's states have another width."""
        if states.shape[-1] != len(self.mean):
            raise UpdateError(
                f"the states of blocks {', '.join(map(str, self.blocks))} have a width of "
                f"{states.shape[-1]}, and the scope was made for {len(self.mean)}: it is that of "
                "another model, or damaged"
            )
        return (states.to(self.mean.device, torch.float32) - self.mean) / self.std

    @property
    def width(self) -> int:
        """d, the width of a key."""
        return len(self.projection)

    def encoded(self, states: Tensor) -> Tensor:
        """Encoded states (..., d), each of norm 1, for `states` (..., D); with a relation head
        (..., 2d), with that head's encodings, each of norm 1, after them."""
        standardised = self.standardised(states)
        found = F.normalize(standardised @ self.projection.T, dim=-1)
        if self.relation is None:
            return found
        return torch.cat([found, self._asked(standardised)], -1)

    def _asked(self, standardised: Tensor) -> Tensor:
        """(..., d): the relation head's encodings of standardised states (..., D)."""
        assert self.relation is not None
        reader = self.relation if self.relation_hidden is None else self.relation_hidden
        read = standardised[..., -reader.shape[1] :]
        if self.relation_hidden is not None:
            read = F.gelu(read @ self.relation_hidden.T)
        return F.normalize(read @ self.relation.T, dim=-1)

    def keys(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The keys (S, d) of a prompt's `states` (T, D), and their weights (S,), which sum to 1. S
        is at most `MOST_KEYS`, and one more with a relation head: its key is the first, with
        weight 0."""
        last = states[-1:]
        if self.skip_first and len(states) > 1:
            states = states[1:]
        weights = self._token_weights(states)
        kept = weights.topk(min(MOST_KEYS, len(weights))).indices.sort().values
        chosen = weights[kept]
        keys = self.encoded(states[kept])[:, : self.width]
        weights = chosen / chosen.sum().clamp(min=1e-12)
        if self.relation is None:
            return keys, weights
        asked = self.encoded(last)[:, self.width :]
        return torch.cat([asked, keys]), torch.cat([weights.new_zeros(1), weights])

    def _token_weights(self, states: Tensor) -> Tensor:
        if self.common is not None:
            nearest = (self.encoded(states) @ self.common.T).amax(1)
            return (1 - nearest).clamp(min=1e-3)
        return F.softplus(self.standardised(states) @ self.weigh + self.weigh_bias)

    def logits(self, best: Tensor, weights: Tensor) -> Tensor:
        """Logits (...,) from each key's largest cosine (..., S) and weight (..., S)."""
        return self.scale * (best * weights).sum(-1) + self.shift

    def cosines(self, encoded: Tensor, keys: Tensor) -> Tensor:
        """(T, S): the cosines of encoded tokens (T, d or 2d) with a request's keys (S, d)."""
        return encoded[:, : self.width] @ keys.T

    def relation_logits(self, encoded: Tensor, keys: Tensor) -> Tensor:
        """(T, R): the relation head's logit at each encoded token (T, 2d) alone, for requests whose
        first keys are these (R, d)."""
        cosines = encoded[:, self.width :] @ keys.T
        return self.relation_scale * cosines + self.relation_shift

    def subject_logits(self, states: Tensor) -> Tensor:
        """(T,): for each token of a prompt with `states` (T, D), how surely it belongs to the
        subject."""
        assert self.subject is not None
        return beside_each(self.standardised(states)) @ self.subject + self.subject_bias

    def to(self, device: torch.device) -> Scope:
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **moved)

    def fingerprint(self) -> str:
        """Identifies this scope; thresholds do not count."""
        digest = hashlib.sha256(f"{self.blocks_name} {self.blocks} {self.skip_first}".encode())
        digest.update(f"{self.scale:.6g} {self.shift:.6g}".encode())
        tensors = [self.mean, self.std, self.projection, self.weigh]
        if self.relation is not None:
            digest.update(f"{self.relation_scale:.6g} {self.relation_shift:.6g}".encode())
            tensors.append(self.relation)
        if self.relation_hidden is not None:
            tensors.append(self.relation_hidden)
        if self.subject is not None:
            digest.update(f"{self.subject_bias:.6g}".encode())
            tensors.append(self.subject)
        for tensor in tensors:
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def beside_each(states: Tensor) -> Tensor:
    """(T, 3D): what the subject head reads of `states` (T, D): the state of each token, that of the
    next one (of the last token, its own), and the last token's."""
    last = states[-1:]
    return torch.cat([states, torch.cat([states[1:], last]), last.expand_as(states)], -1)


@dataclass(frozen=True, eq=False)
class ScopedRequest:
    """One request in a memory: its text, and the keys with which its scope compares sequences.

    `keys` (S, d) and `weights` (S,) are those of `Scope.keys`. `subject` are the words of its
    subject, if it names one. `answers` are the token ids of its target, one tuple for each
    spelling.
    """

    prompt: str
    target: str
    keys: Tensor
    weights: Tensor
    subject: tuple[str, ...] = ()
    answers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ScopedUpdate(LowRankUpdate):
    """An update of which at most one request's rows apply to each position.

    `requests[r]` says where the rows with `request` r apply; `read` gives the text of token ids.
    Rows may be in half precision. `limit` is how many bytes the memory may hold from then on, with
    the first rows in files; None: as many as before.
    """

    requests: tuple[ScopedRequest, ...] = ()
    scope: Scope | None = None
    read: object = None
    limit: int | None = None


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without case, accents and punctuation."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return tuple(_WORD.findall("".join(c for c in plain if not unicodedata.combining(c))))


def stands_in(words: Sequence[str], subject: Sequence[str]) -> bool:
    """Whether `words` contain the words of `subject`, one after the other."""
    return any(True for _ in starts_of(words, subject))


def starts_of(words: Sequence[str], subject: Sequence[str]) -> Iterator[int]:
    """The indices in `words` at which the words of `subject` begin, one after the other."""
    n = len(subject)
    for i in range(len(words) - n + 1):
        if tuple(words[i : i + n]) == tuple(subject):
            yield i
