"""Records a model's answers to the texts that test edits, before an edit, and again after it.

`record` and `score` only call the model (forward and generate). They do not know what changed it in
between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional as F

from easyedit_mend_parallel.errors import NoTrunkError
from easyedit_mend_parallel.evaluation.asking import Asker, context_of
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.evaluation.examples import Asking, as_examples
from easyedit_mend_parallel.evaluation.free_text import Judgement, answer_tokens, judged
from easyedit_mend_parallel.evaluation.generation import Attach, attach_nothing, written
from easyedit_mend_parallel.evaluation.questions import (
    EDIT,
    HELD,
    REPHRASE,
    Asked,
    Question,
    questions_of,
)
from easyedit_mend_parallel.forward.batch import IGNORED, batch_of
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.tokenizing import Tokenized
from easyedit_mend_parallel.weights.target import Target

NEW_TOKENS = 24
"""Maximum number of tokens of free text in addition to those of the answer."""
TOKENS_AT_ONCE = 1024
"""Maximum number of tokens in one forward pass, including padding."""
WRITTEN = (EDIT, REPHRASE)
"""Kinds of prompts after which free text is generated."""


@dataclass(frozen=True)
class Said:
    """A model's answer to one question: `tokens` (the argmax at each judged position), and
    `expected`, the mean log-likelihood of the expected tokens (None if there are none). For
    held-out text, `loss` is the sum of the negative log-likelihoods of its `n` tokens."""

    tokens: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()
    log_likelihood: float | None = None
    loss: float = 0.0
    n: int = 0


@dataclass(frozen=True)
class FreeText:
    """Text that a model generated: `ids` without the end-of-text token; `ended` says if there was
    one. `answer` is the number of ids at the start that are the answer (0: the text does not begin
    with it). `base` is the unedited model's mean log-likelihood of the tokens after the answer,
    given prompt and answer; None if it was not computed or there are none."""

    ids: tuple[int, ...]
    text: str
    ended: bool
    answer: int
    judgement: Judgement
    base: float | None = None


@dataclass(frozen=True)
class Answers:
    """All answers of a model in one state: {index of the question: its answer or free text}."""

    said: dict[int, Said] = field(default_factory=dict)
    texts: dict[int, FreeText] = field(default_factory=dict)

    def __or__(self, other: Answers) -> Answers:
        return Answers(self.said | other.said, self.texts | other.texts)


@dataclass(frozen=True)
class Recorded:
    """The questions, and the model's answers when it was recorded. References no model.

    `given` is the text that the model generates after prompt and answer, for comparison with the
    free text after an edit.
    """

    examples: list[Example]
    questions: list[Question]
    answers: Answers
    given: dict[int, FreeText]
    asker: Asker
    free: bool
    new_tokens: int

    def numbers(self, requests: Sequence[int] | None = None) -> list[int]:
        """The indices of all questions. With `requests`, only of the questions about them, and of
        each line of held-out text once."""
        if requests is None:
            return list(range(len(self.questions)))
        chosen, lines = set(requests), set[str]()
        found = []
        for number, one in enumerate(self.questions):
            is_new_line = one.kind == HELD and one.prompt not in lines
            if is_new_line or (one.kind != HELD and one.request in chosen):
                found.append(number)
            if is_new_line:
                lines.add(one.prompt)
        return found


def record(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Asking],
    *,
    unrelated: Sequence[str] = (),
    held: Sequence[str] = (),
    free: bool = True,
    new_tokens: int = NEW_TOKENS,
    chat: bool = False,
    targets: Sequence[Target] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> Recorded:
    """Ask the unedited `model` every question that tests edits of `requests`.

    Args:
        requests: examples, requests, or EasyEdit's dictionaries (`example_of` says what is read).
        unrelated: texts for requests without unrelated texts, one each, in turn.
        held: lines of held-out text, whose perplexity is measured. Each line is used at least once,
            and each request has at least one, so that edits can also be measured one by one.
        free: also generate text greedily after prompts and rephrases, with up to `new_tokens`
            tokens more than the answer has.
        chat: put prompts into the tokenizer's chat template; unrelated and held-out text stay.
        targets: the weights that later edits will change. The blocks below the lowest of them then
            run once for each text, and their hidden states stay in memory (at most 1 GiB).
        progress: called with the number of answered questions.

    Raises RequestError, before the model is called, for a text that cannot be asked: one longer
    than the model's context, a target of special tokens only, or `chat` without a template.
    """
    examples = as_examples(requests)
    questions = [
        question
        for number, example in enumerate(examples)
        for question in questions_of(number, example, unrelated, most_unrelated=None)
    ]
    for number in range(max(len(held), len(examples)) if held else 0):
        line = held[number % len(held)]
        questions.append(Question(number % len(examples), HELD, line))
    asker = _asker(model, tokenizer, questions, targets, chat)
    empty = Recorded(examples, questions, Answers(), {}, asker, free, new_tokens)
    answers = answers_to(model, empty, range(len(questions)), progress=progress)
    given: dict[int, FreeText] = {}
    if free:
        edits = [n for n, one in enumerate(questions) if one.kind == EDIT]
        given = likelihoods(model, empty, _texts(model, empty, edits, given=True))
    return replace(empty, answers=answers, given=given)


def _asker(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    targets: Sequence[Target],
    chat: bool,
) -> Asker:
    """An asker with a trunk, if there are targets and the model has a trunk."""
    plain = Asker(tokenizer, chat)
    plain.check(model, questions)
    if not targets:
        return plain
    try:
        asker = replace(plain, trunk=CachedTrunk(model, targets))
        # The trunk checks itself on its first batch, so that batch should be small.
        shortest = min(questions, key=lambda one: len(plain.tokenized(model, one).ids))
        asker.texts(model).batch([asker.worded(shortest).text])
    except NoTrunkError:
        return plain
    return asker


def score(
    model: Any,
    recorded: Recorded,
    requests: Sequence[int] | None = None,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Ask the edited `model` the recorded questions: all, or those about the requests with indices
    `requests` and every line of held-out text. `figures` computes figures from the result.

    Only calls the model. `likelihoods` adds the unedited model's likelihood of the free text, and
    needs that model.
    """
    return answers_to(model, recorded, recorded.numbers(requests), progress=progress)


def answers_to(
    model: Any,
    recorded: Recorded,
    numbers: Sequence[int],
    *,
    attach: Attach = attach_nothing,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Answers to the questions with these indices. `attach` gets the requests of each batch's
    sequences, in order, so that it can attach each sequence's own edit."""
    said: dict[int, Said] = {}
    for chosen in recorded.asker.batches(model, recorded.questions, numbers, TOKENS_AT_ONCE):
        with attach([recorded.questions[number].request for number in chosen]):
            said |= _said(model, recorded, chosen)
        progress(len(said))
    texts: dict[int, FreeText] = {}
    if recorded.free:
        free = [n for n in numbers if recorded.questions[n].kind in WRITTEN]
        texts = _texts(model, recorded, free, attach=attach)
    return Answers(said, texts)


@torch.no_grad()
def likelihoods(model: Any, recorded: Recorded, texts: dict[int, FreeText]) -> dict[int, FreeText]:
    """`texts` with the likelihood, by `model`, of the tokens after the answer, given prompt and
    answer.

    `model` must be the recorded model, without edits. A text that does not begin with the answer,
    or ends with it, is returned unchanged.
    """
    asker, found = recorded.asker, dict(texts)
    open_ends = [n for n, text in texts.items() if text.answer and len(text.ids) > text.answer]
    for chosen in asker.batches(model, recorded.questions, open_ends, TOKENS_AT_ONCE):
        rows = []
        for n in chosen:
            prompt, _ = asker.prompt_and_answer(model, recorded.questions[n])
            read = () if model.config.is_encoder_decoder else texts[n].ids
            rows.append(Tokenized((*prompt, *read), texts[n].ids))
        batch = batch_of(model, asker.tokenizer, rows)
        for row, n in enumerate(chosen):  # the answer itself was given
            labelled = (batch.labels[row] != IGNORED).nonzero().flatten()
            batch.labels[row, labelled[: texts[n].answer]] = IGNORED
        for n, loss in zip(chosen, batch.losses_on(model).tolist(), strict=True):
            found[n] = replace(texts[n], base=-loss)
    return found


@torch.no_grad()
def _said(model: Any, recorded: Recorded, chosen: Sequence[int]) -> dict[int, Said]:
    questions = [recorded.questions[number] for number in chosen]
    asked = Asked.of(recorded.asker.texts(model), [recorded.asker.worded(q) for q in questions])
    found: dict[int, Said] = {}
    if questions[0].kind == HELD:
        for number, (total, n) in zip(chosen, asked.held_losses(model), strict=True):
            found[number] = Said(loss=total, n=n)
        return found
    each = zip(chosen, questions, asked.logits(model), asked.expected(), strict=True)
    for number, question, logits, label in each:
        tokens = tuple(logits.argmax(-1).tolist())
        if not question.target:
            found[number] = Said(tokens)
            continue
        loss = F.cross_entropy(logits, label.to(logits.device))
        found[number] = Said(tokens, tuple(label.tolist()), -float(loss))
    return found


def _texts(
    model: Any,
    recorded: Recorded,
    numbers: Sequence[int],
    *,
    given: bool = False,
    attach: Attach = attach_nothing,
) -> dict[int, FreeText]:
    """Free text after the prompts with these indices. With `given`, it is generated after prompt
    and answer, and begins with the answer."""
    asker = recorded.asker
    asked = [asker.prompt_and_answer(model, recorded.questions[number]) for number in numbers]
    room = context_of(model)
    limits = [
        min(len(answer) + recorded.new_tokens, room - len(prompt)) - (len(answer) if given else 0)
        for prompt, answer in asked
    ]
    ids = written(
        model,
        asker.tokenizer,
        [prompt for prompt, _ in asked],
        limits,
        begun=[answer for _, answer in asked] if given else (),
        attach=lambda chosen: attach([recorded.questions[numbers[n]].request for n in chosen]),
    )
    found = {}
    for number, (_, answer), (own, ended) in zip(numbers, asked, ids, strict=True):
        whole = [*answer, *own] if given else own
        target = recorded.questions[number].target
        found[number] = _free_text(asker.tokenizer, whole, target, ended=ended)
    return found


def _free_text(tokenizer: Any, ids: Sequence[int], target: str, *, ended: bool) -> FreeText:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    judgement = judged(text, target, ids, ended=ended)
    answer = 0
    if judgement.first:
        pieces = (tokenizer.decode(ids[: n + 1]) for n in range(len(ids)))
        answer = answer_tokens(pieces, target)
    return FreeText(tuple(ids), text, ended, answer, judgement)
