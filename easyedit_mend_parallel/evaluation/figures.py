"""Computes figures from the answers before and after an edit, each with its 95 % interval.

Also lists every single answer. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.evaluation.questions import (
    EDIT,
    HELD,
    LEARNT,
    NEIGHBOURS,
    PORTABILITY,
    REPHRASE,
    UNRELATED,
    accuracy,
    value,
)
from easyedit_mend_parallel.evaluation.recording import Answers, FreeText, Recorded, Said

FORCED = (EDIT, REPHRASE, NEIGHBOURS, UNRELATED, PORTABILITY)
FIRST, ONCE, REPETITION, ENDS, LIKELIHOOD = (
    "answer_first",
    "answer_once",
    "repetition",
    "text_ends",
    "text_likelihood",
)
PERPLEXITY = "perplexity"
NAMES = {
    EDIT: "share of prompts after which every token of the target is the most probable one",
    REPHRASE: "the same after other wordings",
    NEIGHBOURS: "share of prompts about other subjects whose next token (or answer) is unchanged",
    UNRELATED: "share of positions of unrelated texts whose most probable token is unchanged",
    PORTABILITY: "share of prompts answered correctly that need the new fact and one more",
    FIRST: "share of free texts that begin with the answer",
    ONCE: "the same, and the answer is not repeated before the text's natural stop",
    f"{REPHRASE}_first": "`answer_first` after other wordings",
    f"{REPHRASE}_once": "`answer once` after other wordings",
    REPETITION: "share of a free text's bigrams that occurred before in it",
    LIKELIHOOD: "mean log-likelihood of the text after the answer, by the unedited model",
    ENDS: "share of free texts with a natural stop",
    PERPLEXITY: "perplexity of held-out text",
    "rewrite_acc": "EasyEdit's: mean share of correct tokens of the target",
    "rephrase_acc": "EasyEdit's, after other wordings",
}
"""{figure: its meaning}. EasyEdit's `locality` and `portability` are further figures, with the
names of the requests' groups: `locality.NAME_acc`, `portability.NAME_acc`."""


def figures(recorded: Recorded, answers: Answers) -> dict[str, Score]:
    """{name: figure} for every figure that has texts, in the order of `NAMES`."""
    found: dict[str, list[float]] = {}
    shares: dict[tuple[str, int], list[float]] = {}
    for number, said in answers.said.items():
        question = recorded.questions[number]
        if question.kind == HELD:
            continue
        found.setdefault(question.kind, []).append(_of(value, recorded, number, said))
        name = _easyedits_name(question.kind, question.name)
        if name and question.target:
            share = _of(accuracy, recorded, number, said)
            shares.setdefault((name, question.request), []).append(share)
    for (name, _), of_request in shares.items():  # EasyEdit averages the means of requests
        found.setdefault(name, []).append(sum(of_request) / len(of_request))
    for name, values in _written(recorded, answers.texts).items():
        found[name] = values
    scores = {
        name: Score.of_numbers(values) if name == LIKELIHOOD else Score.of(values)
        for name, values in found.items()
    }
    held = [said for n, said in answers.said.items() if recorded.questions[n].kind == HELD]
    if held:
        losses, tokens = [said.loss for said in held], [said.n for said in held]
        scores[PERPLEXITY] = Score.of_perplexity(losses, tokens)
    known = [name for name in NAMES if name in scores]
    return {name: scores[name] for name in [*known, *sorted(scores.keys() - set(known))]}


def given_figures(recorded: Recorded) -> dict[str, Score]:
    """The figures of the free text that the unedited model writes after prompt and answer."""
    values = _written(recorded, recorded.given)
    return {
        name: Score.of_numbers(some) if name == LIKELIHOOD else Score.of(some)
        for name, some in values.items()
        if name in (REPETITION, ENDS, LIKELIHOOD) and some
    }


def answer_lines(recorded: Recorded, answers: Answers, decode: Any) -> Iterator[dict[str, Any]]:
    """Every single answer, before and after, as JSON values. `decode` turns ids into text."""
    for number, after in answers.said.items():
        question, before = recorded.questions[number], recorded.answers.said[number]
        example = recorded.examples[question.request]
        line: dict[str, Any] = {
            "request": question.request,
            "split": example.split,
            "kind": question.kind,
            "prompt": question.prompt,
        }
        if question.kind == HELD:
            loss = {"before": before.loss / max(1, before.n), "after": after.loss / max(1, after.n)}
            yield {**line, "tokens": after.n, "loss": loss}
            continue
        line |= {"target": question.target.strip() or None, "name": question.name or None}
        line |= {
            "before": _line(recorded, number, before, decode),
            "after": _line(recorded, number, after, decode),
        }
        if number in answers.texts:
            line["free"] = {
                "before": _free_line(recorded.answers.texts[number]),
                "after": _free_line(answers.texts[number]),
            }
        yield line


def _line(recorded: Recorded, number: int, said: Said, decode: Any) -> dict[str, Any]:
    return {
        "said": decode(list(said.tokens)),
        "value": _of(value, recorded, number, said),
        "log_likelihood": said.log_likelihood,
    }


def _free_line(text: FreeText) -> dict[str, Any]:
    judgement = text.judgement
    return {
        "text": text.text,
        "first": judgement.first,
        "once": judgement.once,
        "ends": judgement.ends,
        "repetition": judgement.repetition,
        "base_log_likelihood": text.base,
    }


def _of(measure: Callable[..., float], recorded: Recorded, number: int, said: Said) -> float:
    before = recorded.answers.said[number] if recorded.answers.said else said
    return measure(
        recorded.questions[number].kind,
        torch.tensor(said.tokens),
        torch.tensor(said.expected),
        torch.tensor(before.tokens),
    )


def _easyedits_name(kind: str, group: str) -> str:
    named = {EDIT: "rewrite_acc", REPHRASE: "rephrase_acc"}
    if kind in named:
        return named[kind]
    if not group:
        return ""
    return f"{PORTABILITY if kind == PORTABILITY else 'locality'}.{group}_acc"


def _written(recorded: Recorded, texts: dict[int, FreeText]) -> dict[str, list[float]]:
    """{figure of free text: its values}, one value for each text."""
    found: dict[str, list[float]] = {}
    for number, text in texts.items():
        judgement = text.judgement
        values: dict[str, float | None]
        if recorded.questions[number].kind == REPHRASE:
            values = {
                f"{REPHRASE}_first": float(judgement.first),
                f"{REPHRASE}_once": float(judgement.once),
            }
        else:
            values = {
                FIRST: float(judgement.first),
                ONCE: float(judgement.once),
                REPETITION: judgement.repetition,
                ENDS: float(judgement.ends),
                LIKELIHOOD: text.base,
            }
        for name, number_ in values.items():
            if number_ is not None:
                found.setdefault(name, []).append(number_)
    return found


__all__ = ["FORCED", "LEARNT", "NAMES", "answer_lines", "figures", "given_figures"]
