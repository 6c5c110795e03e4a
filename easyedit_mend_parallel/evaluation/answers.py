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
    """A text, and an answer whose probability after the text is measured.

    `kind` is that of the text (prompt, rephrase or neighbour). `role` is "new" for the edit's
    target and "old" for the answer before. `request` is the index of the edit's request.
    """

    request: int
    kind: str
    role: str
    prompt: str
    answer: str
    tokens: Tokenized


def answers_of(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[Answer]:
    """The texts and answers of `requests`. `model` must not have the edit yet.

    Prompts and rephrases have the new answer and, if the request has a `ground_truth`, the old one.
    Neighbours have the right answer if it is known, otherwise the model's own next token.
    Rephrases and neighbours are read as in `example_of`.
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
    """The probability of each answer after its text, per token: the geometric mean over the
    answer's tokens, without special tokens that the tokenizer adds."""
    found: list[float] = []
    for start in range(0, len(answers), AT_ONCE):
        texts = [answer.tokens for answer in answers[start : start + AT_ONCE]]
        batch = batch_of(model, tokenizer, texts, special_tokens_in_labels=False)
        losses = batch.losses_on(model)
        found += losses.neg().exp().tolist()
    return found


@torch.no_grad()
def _next(model: Any, tokenizer: Any, prompt: str) -> tuple[str, Tokenized]:
    """The model's most probable next token that is not special, as text and after its prompt."""
    text = tokenized(model, tokenizer, prompt)
    logits = batch_of(model, tokenizer, [text]).logits(model)[0, -1]
    logits[list(tokenizer.all_special_ids)] = -torch.inf
    token = int(logits.argmax())
    answer = tokenizer.decode([token]).strip() or repr(tokenizer.decode([token]))
    return answer, Tokenized((*text.ids, token), (token,))
