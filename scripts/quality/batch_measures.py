"""Facts to edit in batches, and what became of the model: edits, rephrases, neighbours, others.

Reads JSON lines. Knows neither how a batch is edited nor how results are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.evaluation import Score
from easyedit_mend_parallel.forward.batch import IGNORED, Batch, make_batch
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.text_batch import make_text_batch
from easyedit_mend_parallel.weights.target import Target

AT_ONCE = 32
"""How many prompts go through the model together."""
MEASURES = ("edit", "rephrase", "neighbours", "unrelated")


@dataclass(frozen=True)
class Fact:
    """One request, and the prompts that judge it."""

    prompt: str
    target_new: str
    rephrases: Sequence[str]
    neighbours: Sequence[str]
    subject: str | None = None
    relation: str | None = None

    @property
    def request(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "target_new": self.target_new, "subject": self.subject}


def read_facts(paths: Sequence[Path], split: str | None) -> tuple[list[Fact], list[str]]:
    """Facts of `split` (None: all) and unrelated text, from files of JSON lines.

    A line is a fact, with unrelated text of its own where it has some, or `{"text": ...}`. Prompts
    come once each, since a batch holds no contradictions.
    """
    facts: dict[str, Fact] = {}
    unrelated: dict[str, None] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts = [record["text"]] if "text" in record else record.get("unrelated", [])
            unrelated.update(dict.fromkeys(texts))
            if "prompt" in record and split in (None, record.get("split")):
                names = ("prompt", "target_new", "rephrases", "neighbours")
                about = (record.get("subject"), record.get("relation"))
                fact = Fact(*(record.get(name, []) for name in names), *about)
                facts.setdefault(fact.prompt, fact)
    return list(facts.values()), list(unrelated)


@dataclass
class Scores:
    """One number for each thing asked: 1 or 0, and for unrelated text a share of its tokens."""

    of: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})

    def add(self, other: Scores) -> None:
        for name in MEASURES:
            self.of[name] += other.of[name]

    def mean(self, name: str) -> float:
        values = self.of[name]
        return sum(values) / len(values) if values else math.nan

    def interval(self, name: str) -> tuple[float, float]:
        """95 %, as every evaluation of this package has it."""
        if not self.of[name]:
            return math.nan, math.nan
        score = Score.of(self.of[name])
        return score.low, score.high


class Judge:
    """Asks one model, before and after an edit of its upper blocks; the blocks below run once."""

    def __init__(self, model: Any, tokenizer: Any, targets: Sequence[Target]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.trunk = CachedTrunk(model, targets)
        self._before: dict[tuple[str, bool], list[int]] = {}

    def n_tokens(self, fact: Fact) -> int:
        """How many tokens the fact's target has."""
        text = Request(fact.prompt, fact.target_new).target_text
        return len(self.tokenizer(text)["input_ids"])

    def know(self, prompts: Sequence[str], texts: Sequence[str]) -> None:
        """Note what the model, unedited, says after the prompts and along the texts."""
        for asked, last in ((prompts, True), (texts, False)):
            for text, said in zip(asked, self._said(asked, last), strict=True):
                self._before[text, last] = said

    def scores(self, facts: Sequence[Fact], texts: Sequence[str]) -> Scores:
        """What the model, as it is now, makes of the facts and of unrelated texts."""
        rephrased = [(query, fact) for fact in facts for query in fact.rephrases]
        neighbours = [query for fact in facts for query in fact.neighbours]
        found = Scores()
        found.of["edit"] = self._answered([(fact.prompt, fact.target_new) for fact in facts])
        found.of["rephrase"] = self._answered([(q, fact.target_new) for q, fact in rephrased])
        for name, asked, last in (("neighbours", neighbours, True), ("unrelated", texts, False)):
            for text, said in zip(asked, self._said(asked, last), strict=True):
                before = self._before[text, last]
                same = sum(a == b for a, b in zip(said, before, strict=True))
                found.of[name].append(same / len(before))
        return found

    def _answered(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """1 for each prompt after which every token of its target is the argmax, else 0."""

        def judged(chosen: Sequence[int]) -> list[float]:
            requests = [Request(*asked[number]) for number in chosen]
            batch = make_batch(self.model, self.tokenizer, requests)
            sequence, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
            right = self._argmax(batch, sequence, position) == batch.labels[sequence, position]
            wrong = set(sequence[~right].tolist())
            return [float(number not in wrong) for number in range(len(chosen))]

        return _by_length([prompt for prompt, _ in asked], judged)

    def _said(self, texts: Sequence[str], last: bool) -> list[list[int]]:
        """The argmax after each text (`last`) or after each of its tokens."""

        def judged(chosen: Sequence[int]) -> list[list[int]]:
            batch = make_text_batch(
                self.model, self.tokenizer, [texts[number] for number in chosen]
            )
            real = batch.inputs["attention_mask"].bool().cpu()
            if last:
                place = torch.arange(real.shape[1])
                real = place == torch.where(real, place, -1).amax(1, keepdim=True)
            sequence, position = real.nonzero(as_tuple=True)
            said = self._argmax(batch, sequence, position)
            return [said[sequence == number].tolist() for number in range(len(chosen))]

        return _by_length(texts, judged)

    @torch.no_grad()
    def _argmax(self, batch: Batch, sequence: Tensor, position: Tensor) -> Tensor:
        resumed = self.trunk.resume(self.model, batch)
        return resumed.predictions(self.model, sequence, position).argmax(-1).cpu()


def _by_length(texts: Sequence[str], judged: Callable[[Sequence[int]], list[Any]]) -> list[Any]:
    """`judged` of the numbers of texts of like length, `AT_ONCE` together; in the texts' order."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        for number, one in zip(chosen, judged(chosen), strict=True):
            found[number] = one
    return found


def copied_into(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put `weights` into the model in place; gives what was there."""
    before = {}
    with torch.no_grad():
        for name, weight in weights.items():
            parameter = model.get_parameter(name)
            before[name] = parameter.detach().clone()
            parameter.copy_(weight)
    return before
