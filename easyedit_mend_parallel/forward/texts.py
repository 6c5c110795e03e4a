"""Makes batches of texts for training and evaluation, which can resume from cached hidden states.

Knows tokenizers and the trunk, but not what is learnt from a text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.forward.batch import IGNORED, Batch, batch_of
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.tokenizing import AUTO, Tokenized, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Text:
    """A prompt, and what follows it (with its leading space), if anything.

    `continuation` are the ids of tokens that follow the target and are no labels.
    """

    prompt: str
    target: str = ""
    continuation: tuple[int, ...] = ()


class TooLong(RequestError):
    """A text has more tokens than `max_length`."""


class Texts:
    """Makes batches of texts for one model; each text is tokenized once.

    Texts longer than `max_length` tokens are refused with TooLong, never cut: a cut text would
    have other labels. With a `trunk` every batch is resumed from it. `special_tokens_in_labels` and
    `target_space` as for `make_batch`; what stands before a target is in the texts already.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        trunk: CachedTrunk | None = None,
        special_tokens_in_labels: bool = True,
        target_space: str = AUTO,
        known: dict[Text, Tokenized] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.trunk = trunk
        self.special_tokens_in_labels = special_tokens_in_labels
        self.target_space = target_space
        self._tokenized: dict[Text, Tokenized] = {} if known is None else known

    def tokenized(self, text: Text) -> Tokenized:
        """Its token ids. Raises TooLong, and RequestError for a target that is nothing."""
        if text not in self._tokenized:
            found = tokenized(
                self.model, self.tokenizer, text.prompt, text.target, self.target_space
            )
            after = text.continuation
            found = replace(found, ids=found.ids + after, n_after=len(after))
            length = max(len(found.ids), len(found.labels))
            if self.max_length is not None and length > self.max_length:
                raise TooLong(
                    f"{text.prompt + text.target!r} has {length} tokens, more than max_length: "
                    f"{self.max_length}"
                )
            self._tokenized[text] = found
        return self._tokenized[text]

    def batch(self, texts: Sequence[Text], requests: Sequence[int] | None = None) -> Batch:
        """A batch of `texts`. Each is a separate request, or belongs to the request with its
        index."""
        made = batch_of(
            self.model,
            self.tokenizer,
            [self.tokenized(text) for text in texts],
            special_tokens_in_labels=self.special_tokens_in_labels,
        )
        if requests is not None:
            made = replace(made, request=torch.tensor(requests))
        return made if self.trunk is None else self.trunk.resume(self.model, made)

    def keep(self, texts: Sequence[Text]) -> Any:
        """Pass texts through the trunk ahead of time; yields how many are done."""
        assert self.trunk is not None
        found = [self.tokenized(text) for text in dict.fromkeys(texts)]
        ids = {
            one.ids: len(one.ids) - one.n_after - len(one.labels) if one.labels else 0
            for one in sorted(found, key=lambda one: len(one.labels))
        }
        return self.trunk.keep(self.model, list(ids.items()))


def target_positions(batch: Batch, sequence: int) -> list[int]:
    """The positions of a sequence that predict its target; without one, all that predict a token.

    The last of them predicts what comes after a text without a target.
    """
    labelled = (batch.labels[sequence] != IGNORED).nonzero().flatten()
    if len(labelled):
        return [int(position) for position in labelled]
    if "decoder_input_ids" in batch.inputs:
        return [0]
    live = batch.inputs["attention_mask"][sequence].nonzero().flatten()
    return [int(position) for position in live]


def continuation_positions(batch: Batch, sequence: int) -> list[int]:
    """The positions of a decoder-only sequence from its target's last token on.

    The first of them predicts what comes after the target.
    """
    labelled = (batch.labels[sequence] != IGNORED).nonzero().flatten()
    live = batch.inputs["attention_mask"][sequence].nonzero().flatten().cpu()
    return [int(position) for position in live if position > labelled[-1]]


def some_positions(batch: Batch, sequence: int, limit: int, seed: str) -> list[int]:
    """At most `limit` of a sequence's `target_positions`, the last one always among them."""
    found = target_positions(batch, sequence)
    if len(found) <= limit:
        return found
    return sorted(random.Random(seed).sample(found[:-1], limit - 1)) + found[-1:]


def as_index(chosen: Sequence[Sequence[int]], first: int = 0) -> tuple[Tensor, Tensor]:
    """(sequence, position) of the positions chosen in each sequence, counted from `first` on."""
    pairs = [(first + n, position) for n, found in enumerate(chosen) for position in found]
    sequence, position = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return sequence, position
