"""Checks whether a model currently gives the target texts of its edits.

Knows requests and models, and nothing of updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyedit_mend_parallel.forward.batch import IGNORED, make_batch
from easyedit_mend_parallel.forward.requests import Request

AT_ONCE = 32
"""Maximum number of requests in one forward pass."""


@dataclass(frozen=True)
class Verdict:
    """The model's answer to one request, given the target's previous tokens at each position.

    `answer` is the text of the most probable tokens, `probability` that of the target per token
    (the geometric mean). `holds` is true if all most probable tokens are those of the target.
    """

    request: Request
    answer: str
    probability: float
    holds: bool


@torch.no_grad()
def verify(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[Verdict]:
    """A verdict on each request, in their order, by the model in its current state.

    Special tokens that the tokenizer adds to a target are not part of the answer.
    """
    order = sorted(range(len(requests)), key=lambda n: len(requests[n].prompt))
    found: dict[int, Verdict] = {}
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        batch = make_batch(
            model,
            tokenizer,
            [requests[number] for number in chosen],
            special_tokens_in_labels=False,
        )
        sequence, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
        logits = batch.predictions(model, sequence, position).float().cpu()
        labels = batch.labels[sequence, position]
        likelihood = logits.log_softmax(-1).gather(1, labels.unsqueeze(1))[:, 0]
        for row, number in enumerate(chosen):
            mine = sequence == row
            said = logits[mine].argmax(-1)
            found[number] = Verdict(
                requests[number],
                tokenizer.decode(said.tolist()).strip(),
                float(likelihood[mine].mean().exp()),
                bool((said == labels[mine]).all()),
            )
    return [found[number] for number in range(len(requests))]
