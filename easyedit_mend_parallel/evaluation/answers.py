"""Measures the probability of an edit's old and new answer, on the texts that test the edit.

Knows requests and models, and nothing of updates; the caller applies and undoes the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyedit_mend_parallel.evaluation.examples import example_of
from easyedit_mend_parallel.forward.batch import batch_of
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.tokenizing import AUTO, Tokenized, target_after, tokenized

PROMPT, REPHRASE, NEIGHBOUR = "prompt", "rephrase", "neighbour"
NEW, OLD = "new", "old"
AT_ONCE = 16
"""Texts in one forward pass."""


@dataclass(frozen=True)
class Answer:
    """A text and an answer whose probability after it is asked for.

    `kind` is the text's (prompt, rephrase or neighbour), `role` the answer's: "new" is what the
    edit teaches, "old" what was said before. `request` is the number of the edit's request.
    """

    request: int
    kind: str
    role: str
    prompt: str
    answer: str
    tokens: Tokenized


def answers_of(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[Answer]:
    """What `requests` let one ask of `model`, as it is now: before the edit.

    Of prompt and rephrases the new answer and the old one (`ground_truth`, where a request has
    it); of neighbours the right answer where it is known, otherwise the model's own next token.
    Rephrases and neighbours are read as `example_of` reads them.
    """
    found: list[Answer] = []
    for number, request in enumerate(requests):
        truth = request.other.get("ground_truth")
        example = example_of(request)
        rephrases = [(REPHRASE, text) for text in example.rephrases]
        for kind, prompt in [(PROMPT, request.prompt), *rephrases]:
            for role, answer in ((NEW, request.target_new), (OLD, truth)):
                if isinstance(answer, str) and answer.strip():
                    space = request.target_space or AUTO
                    following = target_after(prompt, answer, space)
                    tokens = tokenized(model, tokenizer, prompt, following, space)
                    found.append(Answer(number, kind, role, prompt, answer.strip(), tokens))
        for one in example.neighbours:
            if one.target:
                tokens = tokenized(model, tokenizer, one.prompt, one.target)
                found.append(Answer(number, NEIGHBOUR, OLD, one.prompt, one.target.strip(), tokens))
            elif not model.config.is_encoder_decoder:
                text, tokens = _next(model, tokenizer, one.prompt)
                found.append(Answer(number, NEIGHBOUR, OLD, one.prompt, text, tokens))
    return found


@torch.no_grad()
def probabilities(model: Any, tokenizer: Any, answers: Sequence[Answer]) -> list[float]:
    """The probability of each answer after its text, per token (the geometric mean of its
    tokens'); special tokens that a tokenizer puts around an answer are no part of it."""
    found: list[float] = []
    for start in range(0, len(answers), AT_ONCE):
        texts = [answer.tokens for answer in answers[start : start + AT_ONCE]]
        batch = batch_of(model, tokenizer, texts, special_tokens_in_labels=False)
        losses = batch.losses_on(model)
        found += losses.neg().exp().tolist()
    return found


@torch.no_grad()
def _next(model: Any, tokenizer: Any, prompt: str) -> tuple[str, Tokenized]:
    """The model's most probable next token that is no special one, as text and after its prompt."""
    text = tokenized(model, tokenizer, prompt)
    logits = batch_of(model, tokenizer, [text]).logits(model)[0, -1]
    logits[list(tokenizer.all_special_ids)] = -torch.inf
    token = int(logits.argmax())
    answer = tokenizer.decode([token]).strip() or repr(tokenizer.decode([token]))
    return answer, Tokenized((*text.ids, token), (token,))
