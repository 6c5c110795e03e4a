"""Makes batches from requests: token ids, labels, one loss each. Only this module calls a model.

Tokenizers are used up to here; the code that takes a batch sees only tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.forward.label_logits import LabelLogits
from easyedit_mend_parallel.forward.predicting import (
    decoder_inputs,
    explained,
    logits_in,
    refuse_other_logits,
)
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.tokenizing import (
    AUTO,
    EASYEDIT,
    Tokenized,
    say_other_labels,
    tokenized,
)
from easyedit_mend_parallel.weights.compiled import uncompiled
from easyedit_mend_parallel.weights.engines import ended
from easyedit_mend_parallel.weights.offload import sent_back
from easyedit_mend_parallel.weights.whole import whole_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
"""The label of a position on which no loss depends, as in torch and transformers."""


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens that belong to R requests.

    `inputs` are the arguments of the model (`input_ids`, `attention_mask`, `position_ids` if
    the forward takes them, `decoder_input_ids` for encoder-decoder models). `labels`
    (B, T), on the CPU, is aligned with the model's predictions: `labels[b, t]` is the token
    that the logits at t should predict, or `IGNORED`. `request` (B,) is the index of each
    sequence's request.
    """

    inputs: dict[str, Any]
    labels: Tensor
    request: Tensor

    @property
    def n_requests(self) -> int:
        return int(self.request.max()) + 1

    def token_mask(self, length: int) -> Tensor:
        """(B, length) on the CPU: true for real tokens up to the last that predicts a label.

        `length` is the number of tokens of each sequence that a layer gets. In an encoder-decoder
        model all tokens of the encoder count; if both sides have the same length, tokens of either
        side count. Raises TargetError for a layer that gets neither.
        """
        before_answered = torch.arange(self.labels.shape[1]) <= self._last_labelled()
        mask = self.inputs.get("attention_mask")
        real = torch.ones_like(before_answered) if mask is None else mask.bool().cpu()
        if "decoder_input_ids" not in self.inputs:
            sides = [before_answered & real]
        else:
            sides = [before_answered, real]
        found = [side for side in sides if side.shape[1] == length]
        if not found:
            raise TargetError(
                f"a target sees {length} tokens of each sequence, which are not those of its "
                "prompt or target: set `aggregate: sum`, which need not tell tokens apart"
            )
        return torch.stack(found).any(0)

    def label_mask(self, length: int) -> Tensor:
        """(B, length) on the CPU: true at positions that predict a label; false in the encoder."""
        if length != self.labels.shape[1]:
            return torch.zeros(len(self.labels), length, dtype=torch.bool)
        return self.labels != IGNORED

    def after_mask(self, length: int) -> Tensor:
        """(B, length) on the CPU: true for real tokens after the last that predicts a label.

        The first of them is the target's last token. False everywhere in an encoder-decoder model,
        which ends each target itself, and for other lengths than that of the labels.
        """
        mask = self.inputs.get("attention_mask")
        if "decoder_input_ids" in self.inputs or length != self.labels.shape[1]:
            return torch.zeros(len(self.labels), length, dtype=torch.bool)
        real = torch.ones_like(self.labels) if mask is None else mask.cpu()
        return real.bool() & (torch.arange(length) > self._last_labelled())

    def _last_labelled(self) -> Tensor:
        """(B, 1): the last position of each sequence that predicts a label."""
        position = torch.arange(self.labels.shape[1])
        return torch.where(self.labels != IGNORED, position, -1).amax(1, keepdim=True)

    def parts(self, tokens: int) -> Iterator[Batch]:
        """This batch in parts of at most `tokens` tokens, padding included, in its order.

        A request is never split, so a part has at least one. Each part counts its requests from 0.
        """
        at_once = max(1, tokens // self.width)
        for start in range(0, self.n_requests, at_once):
            mine = (self.request >= start) & (self.request < start + at_once)
            chosen = mine.nonzero().flatten()
            yield self.taken(chosen, self.request[chosen] - start)

    def taken(self, sequences: Tensor, request: Tensor) -> Batch:
        """The batch of the sequences with these indices, in this order, with `request` (B,)."""
        inputs = {
            name: value[sequences.to(value.device)] if self.is_of_sequences(value) else value
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=inputs, labels=self.labels[sequences], request=request)

    def answers(self, special_ids: Collection[int]) -> Batch:
        """This batch with no special token among its labels."""
        return replace(self, labels=without_special_tokens(self.labels, special_ids))

    @property
    def width(self) -> int:
        """The number of tokens of a request's longest side, including padding."""
        values = [value for value in self.inputs.values() if self.is_of_sequences(value)]
        longest: int = max(value.shape[1] for value in (*values, self.labels))
        return longest * -(-len(self.labels) // self.n_requests)

    @property
    def n_tokens(self) -> int:
        """The maximum number of tokens of any target that `token_mask` counts."""
        values = [value for value in self.inputs.values() if self.is_of_sequences(value)]
        lengths = {value.shape[1] for value in (*values, self.labels)}
        return max(int(self.token_mask(length).sum()) for length in lengths)

    def label_shares(self) -> Tensor:
        """(R,), fp32: the share of all labels that belongs to each request."""
        counts = torch.zeros(self.n_requests)
        counts.index_add_(0, self.request, (self.labels != IGNORED).sum(1).float())
        return counts / counts.sum()

    def is_of_sequences(self, value: Any) -> bool:
        """Whether an input has an entry for each sequence and token: (B, T, ...)."""
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != len(self.labels):
            return False
        ids = self.inputs.get("input_ids", self.labels)
        return value.shape[1] in (self.labels.shape[1], ids.shape[1])  # an image has neither

    def fingerprint(self) -> int:
        """A number that identifies the batch, independent of its device."""
        tensors = [value for value in self.inputs.values() if isinstance(value, Tensor)]
        code = 0
        for tensor in (*tensors, self.labels, self.request):
            code = zlib.crc32(str((tensor.shape, tensor.tolist())).encode(), code)
        return code

    def tokens(self, tokenizer: Any) -> dict[str, list[str]]:
        """The text of each token of each sequence, one after the other: in the order of rows.

        {"input_ids": texts}, and "decoder_input_ids" of an encoder-decoder model.
        """
        return {
            name: [tokenizer.decode([token]) for token in ids.flatten().tolist()]
            for name, ids in self.inputs.items()
            if name in ("input_ids", "decoder_input_ids")
        }

    def logits(self, model: nn.Module) -> Tensor:
        """The model's logits (B, T, vocabulary) for this batch, on the model's output device.
        Raises TargetError for a model that predicts no token at each position."""
        read = [value.shape[:2] for value in self.inputs.values() if self.is_of_sequences(value)]
        return self._logits(model, self.labels.shape, *read)

    def _logits(self, model: nn.Module, *shapes: tuple[int, ...]) -> Tensor:
        """The logits in `model`'s output, whose first two sizes have to be one of `shapes`."""
        logits = whole_logits(model, logits_in(model, self.call(model)))
        refuse_other_logits(model, logits, shapes, int(self.labels.max()))
        return logits

    def predictions(self, model: nn.Module, sequence: Tensor, position: Tensor) -> Tensor:
        """The logits (n, vocabulary) at n positions: `sequence` (n,) and `position` in it (n,).

        With a large vocabulary, logits are the most expensive part of a forward pass. Therefore the
        output layer gets only these rows, if it would get the hidden states of every position.
        """
        rows = LabelLogits(self.labels.shape, sequence, position)
        with rows.before_output_layer(model):
            logits = self._logits(model, self.labels.shape, (1, len(sequence)))
        if rows.chosen and logits.shape[:2] == (1, len(sequence)):
            return logits[0]
        return logits[sequence.to(logits.device), position.to(logits.device)]

    def losses(self, logits: Tensor) -> Tensor:
        """(R,), fp32, from all logits: the mean negative log-likelihood of each request's labels.

        Each request has its own mean, so its gradient is the same alone and in a batch.
        """
        sequence, position = self._labelled()
        return self._means(logits[sequence.to(logits.device), position.to(logits.device)])

    def losses_on(self, model: nn.Module) -> Tensor:
        """`losses` of the model's own predictions, (R,); no other logits are computed."""
        return self._means(self.predictions(model, *self._labelled()))

    def answered(self, model: nn.Module) -> Tensor:
        """(R,), boolean, on the CPU: whether the model's own prediction (the argmax) is the label
        at every label of the request."""
        sequence, position = self._labelled()
        said = self.predictions(model, sequence, position).argmax(-1).cpu()
        missed = self.request[sequence[said != self.labels[sequence, position]]]
        return torch.bincount(missed, minlength=self.n_requests) == 0

    def call(self, model: nn.Module) -> Any:
        """Run the model on this batch. Every forward of this package goes through here.

        A compiled model runs uncompiled, since its graphs would not run the hooks of an edit.
        """
        with uncompiled(), explained(model), ended(model), sent_back(model), interrupts_pass():
            return model(**self.inputs)

    def _labelled(self) -> tuple[Tensor, Tensor]:
        """The positions of the labels: the sequence (n,) of each, and the position in it (n,)."""
        sequence, position = (self.labels != IGNORED).nonzero(as_tuple=True)
        return sequence, position

    def _means(self, picked: Tensor) -> Tensor:
        """(R,): each request's mean loss, from the logits (n, vocabulary) at its labels."""
        sequence, position = self._labelled()
        label, request = self.labels[sequence, position], self.request[sequence]
        count = torch.bincount(request, minlength=self.n_requests)
        device = picked.device
        nll = F.cross_entropy(picked.float(), label.to(device), reduction="none")
        share = nll / count[request].to(device)
        return torch.zeros(self.n_requests, device=device).index_add(0, request.to(device), share)


def make_batch(
    model: PreTrainedModel,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    special_tokens_in_labels: bool = True,
) -> Batch:
    """The batch of `requests`, on the device where `model` wants its token ids.

    The labels are the target's tokens in the text of prompt and target (`tokenized`): with the
    special tokens that the tokenizer puts before and after a text, as EasyEdit makes them and
    trains its archives, or without any (`without_special_tokens`). An encoder-decoder model reads
    the prompt and predicts the target; any other model reads both and predicts the target at the
    end. Padding is on the tokenizer's side; the tokenizer needs no padding token and is not
    changed. A message is logged if a request's labels, made in EasyEdit's form, differ from the
    tokens in the text.

    Raises RequestError for a target that adds no token, or is as long as the sequence.
    """
    texts = []
    for asked in requests:
        space = asked.target_space or AUTO
        text = tokenized(model, tokenizer, asked.prompt, asked.target_text, space)
        if space == EASYEDIT:
            say_other_labels(tokenizer, asked.prompt, asked.target_text, text)
        texts.append(text)
    return batch_of(model, tokenizer, texts, special_tokens_in_labels=special_tokens_in_labels)


def without_special_tokens(labels: Tensor, special_ids: Collection[int]) -> Tensor:
    """`labels`, of any shape, with `IGNORED` in place of special tokens.

    Editing and training both use this function. It removes every special token from the labels, at
    the beginning (a BOS before each text) and at the end (an EOS, which would teach the model to
    stop there). The model's inputs do not change.
    """
    special = torch.tensor(sorted(special_ids), dtype=labels.dtype, device=labels.device)
    return labels.masked_fill(torch.isin(labels, special), IGNORED)


def batch_of(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[Tokenized],
    *,
    special_tokens_in_labels: bool = True,
) -> Batch:
    """The batch of `texts`, each one a request, as described in `make_batch`."""
    left = tokenizer.padding_side == "left"
    inputs = {
        "input_ids": padded([text.ids for text in texts], padding_id(tokenizer), left),
        "attention_mask": padded([[1] * len(text.ids) for text in texts], 0, left),
    }
    if model.config.is_encoder_decoder:
        labels = padded([text.labels for text in texts], IGNORED, left=False)
        inputs["decoder_input_ids"] = decoder_inputs(model, labels)
    else:
        at_end = [
            [IGNORED] * (len(text.ids) - text.n_after - len(text.labels) - 1)
            + [*text.labels]
            + [IGNORED] * (text.n_after + 1)
            for text in texts
        ]
        labels = padded(at_end, IGNORED, left)
    if not special_tokens_in_labels:
        labels = without_special_tokens(labels, tokenizer.all_special_ids)
    return Batch(called_with(model, inputs), labels, torch.arange(len(texts)))


def padding_id(tokenizer: Any) -> int:
    """The id of padding. Any valid id will do, since padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def padded(rows: Sequence[Sequence[int]], filler: int, left: bool) -> Tensor:
    """(B, T): the rows with `filler` before (`left`) or after each, up to the longest one."""
    width = max(1, *map(len, rows))
    padding = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor(
        [[*rest, *row] if left else [*row, *rest] for row, rest in zip(rows, padding, strict=True)]
    )
