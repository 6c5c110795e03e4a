"""Validates a network during training: the four measures and the losses of edits, none written.

edit and rephrase: the share of requests whose target tokens are all the argmax, after the prompt
and after another wording of it. neighbours: the share of prompts about other subjects whose next
token is unchanged. unrelated: the mean share of unchanged argmax tokens of a text
(`questions.value`). Every request is edited by itself. Knows no files and no hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.evaluation.questions import (
    EDIT,
    LEARNT,
    NEIGHBOURS,
    REPHRASE,
    UNRELATED,
    Asked,
    questions_of,
    value,
)
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.weights.engines import is_gathered
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

MEASURES = (EDIT, REPHRASE, NEIGHBOURS, UNRELATED)
Editing = Callable[[Sequence[Text]], dict[str, LowRankUpdate]]
"""From requests to {target name: update}, each row with the index of its request."""


@dataclass(frozen=True)
class Scores:
    """One split's scores, for those of `MEASURES` that have texts, and the losses that training
    minimises, as means over the same texts: `edit_loss` of the rephrases (or of the prompts, if
    there are none), `locality_loss` of neighbours and unrelated texts."""

    split: str
    scores: dict[str, Score]
    edit_loss: float
    locality_loss: float

    @property
    def total(self) -> float:
        """The sum of the means, one figure for choices on validation data."""
        return sum(score.mean for score in self.scores.values())

    def flat(self) -> dict[str, float]:
        """{name: figure}: `edit`, `edit_low`, `edit_high`, ..."""
        figures = {"edit_loss": self.edit_loss, "locality_loss": self.locality_loss}
        for name, score in self.scores.items():
            figures |= {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}
        return figures

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def evaluate(
    texts: Texts,
    targets: Sequence[Target],
    editing: Hypernetwork | Editing,
    examples: Sequence[Example],
    unrelated: Sequence[str],
    **options: Any,
) -> list[Scores]:
    """The scores of each split of `examples`; the `options` are those of `measure_edits`."""
    return scores_of(measure_edits(texts, targets, editing, examples, unrelated, **options))


@dataclass(frozen=True)
class Measurement:
    """One text: its `kind`, one of `MEASURES`, its value (0 to 1), and its loss."""

    split: str
    kind: str
    value: float
    loss: float


def measure_edits(
    texts: Texts,
    targets: Sequence[Target],
    editing: Hypernetwork | Editing,
    examples: Sequence[Example],
    unrelated: Sequence[str],
    *,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] = lambda done: None,
) -> list[Measurement]:
    """Edit each example by itself and measure the edit on the example's texts.

    `editing` is a trained network, or a function from requests to updates. Each example is
    also compared on one of its unrelated texts, or else on one of `unrelated`, in turn. With
    `share` (i, n), only every n-th example from the i-th on is measured: the part of process i. If
    the processes hold one model together, all make as many forward passes as the one with the most.
    """
    if isinstance(editing, Hypernetwork):
        network = editing

        def editing(requests: Sequence[Text]) -> dict[str, LowRankUpdate]:
            return propose(texts.model, targets, texts.batch(requests), network).updates

    found: list[Measurement] = []
    numbered = list(enumerate(examples))[share[0] :: share[1]]
    together = share[1] > 1 and is_gathered(texts.model)
    count = -(-len(examples) // share[1]) if together else len(numbered)
    with torch.no_grad():
        for start in range(0, count, batch_size):
            part = numbered[start : start + batch_size]
            measured = _measured(texts, targets, editing, part or [(0, examples[0])], unrelated)
            found += measured if part else []
            progress(start + len(part))
    return found


def scores_of(measurements: Sequence[Measurement]) -> list[Scores]:
    """The scores of each split, in the order in which splits first appear."""
    by_split: dict[str, list[Measurement]] = {}
    for one in measurements:
        by_split.setdefault(one.split, []).append(one)
    scores = []
    for split, found in by_split.items():
        of_kind = {kind: [m for m in found if m.kind == kind] for kind in MEASURES}
        learnt = of_kind["rephrase"] or of_kind["edit"]
        locality = of_kind["neighbours"] + of_kind["unrelated"]
        values = {k: Score.of([m.value for m in some]) for k, some in of_kind.items() if some}
        scores.append(Scores(split, values, _mean_loss(learnt), _mean_loss(locality)))
    return scores


def _mean_loss(measurements: Sequence[Measurement]) -> float:
    return sum(one.loss for one in measurements) / max(1, len(measurements))


def _measured(
    texts: Texts,
    targets: Sequence[Target],
    editing: Editing,
    part: Sequence[tuple[int, Example]],
    unrelated: Sequence[str],
) -> list[Measurement]:
    """The measurements of some examples, from one edited and one unedited forward pass."""
    rows = [
        (row, question)
        for row, (number, example) in enumerate(part)
        for question in questions_of(number, example, unrelated)
        if question.kind in MEASURES
    ]
    updates = editing([Text(e.request.prompt, e.request.target_text) for _, e in part])
    asked = Asked.of(texts, [question for _, question in rows])
    route = torch.tensor([row for row, _ in rows])
    with attached(texts.model, {target.name: target for target in targets}, updates, route):
        after = asked.logits(texts.model)
    each = zip(rows, after, asked.logits(texts.model), asked.expected(), strict=True)
    return [
        _measure(part[row][1].split, question.kind, edited, whole, label.to(edited.device))
        for (row, question), edited, whole, label in each
    ]


def _measure(split: str, kind: str, after: Tensor, before: Tensor, label: Tensor) -> Measurement:
    before = before.to(after.device)
    found = value(kind, after.argmax(-1), label, before.argmax(-1))
    if kind in LEARNT:
        return Measurement(split, kind, found, F.cross_entropy(after, label).item())
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    return Measurement(split, kind, found, (old.exp() * (old - new)).sum(-1).mean().item())
