"""Continues texts with the words of the model as it is: by token ids, or a batch of requests.

Knows how a model generates, and nothing of edits or of what a continuation is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from easyedit_mend_parallel.forward.batch import IGNORED, Batch, padded, padding_id
from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.weights.compiled import uncompiled
from easyedit_mend_parallel.weights.placement import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 10
"""Maximum number of tokens of a continuation; it ends earlier if the model ends its text."""
AT_ONCE = 64
"""Maximum number of texts that are continued together."""


@torch.no_grad()
def generated(
    model: Any, rows: Sequence[Sequence[int]], *, greedy: bool = True, seed: int = 0
) -> list[list[int]]:
    """The ids that follow each text (token ids), at most `TOKENS`, without the one that ends it.

    `seed` is for sampling, if not `greedy`; the random state stays as it is.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    ends = _as_list(model.generation_config.eos_token_id if model.generation_config else None)
    device = input_device(model)
    with torch.random.fork_rng(enabled=not greedy), uncompiled():
        if not greedy:
            torch.manual_seed(seed)
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=GenerationConfig(
                max_new_tokens=TOKENS,
                do_sample=not greedy,
                top_k=0 if not greedy else None,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
        )
    found = [row.tolist() for row in made[:, width:].cpu()]
    return [list(takewhile(lambda token: token not in ends, row)) for row in found]


def with_continuations(model: PreTrainedModel, tokenizer: Any, batch: Batch) -> Batch:
    """`batch` with the greedy continuation of each of its sequences, which has no labels.

    A sequence that ends with a special token, as in chat form, has no continuation. Padding is on
    the tokenizer's side. For decoder-only models.
    """
    length = batch.labels.shape[1]
    live = batch.token_mask(length) | batch.after_mask(length)
    ids, labels = batch.inputs["input_ids"].cpu(), batch.labels
    rows = [one[real].tolist() for one, real in zip(ids, live, strict=True)]
    open_ended = [n for n, row in enumerate(rows) if row[-1] not in tokenizer.all_special_ids]
    after: list[list[int]] = [[] for _ in rows]
    for start in range(0, len(open_ended), AT_ONCE):
        part = open_ended[start : start + AT_ONCE]
        found = generated(model, [rows[n] for n in part])
        for n, continuation in zip(part, found, strict=True):
            after[n] = continuation
    left = tokenizer.padding_side == "left"
    whole = [row + more for row, more in zip(rows, after, strict=True)]
    inputs = {
        "input_ids": padded(whole, padding_id(tokenizer), left),
        "attention_mask": padded([[1] * len(row) for row in whole], 0, left),
    }
    kept = [
        [*one[real].tolist(), *([IGNORED] * len(more))]
        for one, real, more in zip(labels, live, after, strict=True)
    ]
    return replace(batch, inputs=called_with(model, inputs), labels=padded(kept, IGNORED, left))


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
