"""The texts on which an edit is judged, the positions at which they are, and what is counted there.

The one place that says what each measure is, for training's validation and for every evaluation.
Knows how a model is called; does not know whether, or how, it was edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.evaluation.data import Example, LocalityText
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.texts import Text, Texts, as_index, target_positions

EDIT, REPHRASE, NEIGHBOURS, UNRELATED = "edit", "rephrase", "neighbours", "unrelated"
PORTABILITY, HELD = "portability", "held"
LEARNT = (EDIT, REPHRASE, PORTABILITY)
"""Kinds of texts after which an answer is to follow; the others are not to change."""


@dataclass(frozen=True)
class Question:
    """A text on which the edit of the request of that number is judged.

    `target` has its leading space; a text without one is judged where it ends (a neighbour) or at
    every position. `name` is what EasyEdit's request calls the text's group (`locality`,
    `portability`).
    """

    request: int
    kind: str
    prompt: str
    target: str = ""
    name: str = ""

    @property
    def text(self) -> Text:
        return Text(self.prompt, self.target)


def questions_of(
    number: int, example: Example, unrelated: Sequence[str] = (), *, most_unrelated: int | None = 1
) -> list[Question]:
    """Every text on which an example's edit is measured.

    Of its unrelated texts, the first `most_unrelated` (None: all); where it has none, one of
    `unrelated`, in turn.
    """
    request = example.request
    others = list(example.unrelated[:most_unrelated])
    if not others and unrelated:
        others = [LocalityText(unrelated[number % len(unrelated)])]
    return [
        Question(number, EDIT, request.prompt, request.target_text),
        *(Question(number, REPHRASE, p, request.target_after(p)) for p in example.rephrases),
        *_judged(number, NEIGHBOURS, example.neighbours),
        *_judged(number, UNRELATED, others),
        *_judged(number, PORTABILITY, example.portability),
    ]


def _judged(number: int, kind: str, texts: Sequence[LocalityText]) -> list[Question]:
    return [Question(number, kind, one.prompt, one.target, one.name) for one in texts]


@dataclass(frozen=True)
class Asked:
    """Questions as a batch: `sequence` (n,) and `position` (n,) say where they are judged, `sizes`
    how many positions each has, `labels` (n,) what is to be predicted there (-100: nothing);
    `ids` are each text's own, without padding."""

    batch: Batch
    ids: list[tuple[int, ...]]
    sequence: Tensor
    position: Tensor
    sizes: list[int]
    labels: Tensor

    @classmethod
    def of(cls, texts: Texts, questions: Sequence[Question]) -> Asked:
        """Raises RequestError where a text cannot be asked."""
        # A special token among the labels (a BOS) is no part of the answer.
        batch = texts.batch([one.text for one in questions]).answers(
            texts.tokenizer.all_special_ids
        )
        found = [target_positions(batch, row) for row in range(len(questions))]
        for row, one in enumerate(questions):
            if one.kind == NEIGHBOURS and not one.target:
                found[row] = found[row][-1:]
        sequence, position = as_index(found)
        labels = batch.labels[sequence, position]
        ids = [texts.tokenized(one.text).ids for one in questions]
        return cls(batch, ids, sequence, position, [len(one) for one in found], labels)

    def logits(self, model: torch.nn.Module) -> list[Tensor]:
        """What `model` predicts for each question: (positions, vocabulary), fp32."""
        logits = self.batch.predictions(model, self.sequence, self.position).float()
        return list(torch.split(logits, self.sizes))

    def expected(self) -> list[Tensor]:
        """Each question's labels, (positions,), on the CPU."""
        return list(torch.split(self.labels, self.sizes))

    def held_losses(self, model: torch.nn.Module) -> list[tuple[float, int]]:
        """Of each text without a target: the sum of the negative log-likelihoods of its tokens
        after the first, and their number."""
        sums = []
        for ids, logits in zip(self.ids, self.logits(model), strict=True):
            following = torch.tensor(ids[1:], device=logits.device)
            loss = F.cross_entropy(logits[:-1], following, reduction="sum")
            sums.append((float(loss), len(following)))
        return sums


def value(kind: str, said: Tensor, label: Tensor, before: Tensor) -> float:
    """A question's value, 0 to 1, from the tokens `said` (argmax), expected, and said `before`.

    edit, rephrase, portability: 1 where every token of the target is said. neighbours: 1 where
    everything said is unchanged. unrelated: the share of positions that are unchanged.
    """
    if kind in LEARNT:
        return float(bool((said == label).all()))
    same = (said == before).float()
    return same.mean().item() if kind == UNRELATED else float(bool(same.all()))


def accuracy(kind: str, said: Tensor, label: Tensor, before: Tensor) -> float:
    """The share of a question's tokens that are right (or, of a text that is not to change,
    unchanged): what EasyEdit calls `rewrite_acc`, `rephrase_acc`, locality and portability."""
    return (said == (label if kind in LEARNT else before)).float().mean().item()
