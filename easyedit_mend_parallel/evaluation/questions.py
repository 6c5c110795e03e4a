"""Defines the measures: the texts that test an edit, their positions, and what is counted there.

Training's validation and every evaluation use these definitions. Knows how a model is called, and
not whether or how it was edited.
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
"""Kinds of texts that the edit's target must follow. The predictions in all others must not
change."""


@dataclass(frozen=True)
class Question:
    """A text that tests the edit of the request with index `request`.

    `target` includes its leading space. A text without a target is judged at its last position (a
    neighbour) or at every position. `name` is the text's group in EasyEdit's request (`locality`,
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

    They include its first `most_unrelated` unrelated texts (None: all). If it has none, they
    include one of `unrelated`, in turn.
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
    """Questions as a batch. `sequence` (n,) and `position` (n,) are the positions at which they are
    judged, and `sizes` the number of positions of each. `labels` (n,) are the expected tokens there
    (-100: none). `ids` are the token ids of each text, without padding."""

    batch: Batch
    ids: list[tuple[int, ...]]
    sequence: Tensor
    position: Tensor
    sizes: list[int]
    labels: Tensor

    @classmethod
    def of(cls, texts: Texts, questions: Sequence[Question]) -> Asked:
        """Make the batch. Raises RequestError if a text cannot be asked."""
        # A special token among the labels (a BOS) is not part of the answer.
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
        """The logits of `model` for each question: (positions, vocabulary), fp32."""
        logits = self.batch.predictions(model, self.sequence, self.position).float()
        return list(torch.split(logits, self.sizes))

    def expected(self) -> list[Tensor]:
        """Each question's labels, (positions,), on the CPU."""
        return list(torch.split(self.labels, self.sizes))

    def held_losses(self, model: torch.nn.Module) -> list[tuple[float, int]]:
        """For each text without a target: the sum of the negative log-likelihoods of its tokens
        after the first, and their number."""
        sums = []
        for ids, logits in zip(self.ids, self.logits(model), strict=True):
            following = torch.tensor(ids[1:], device=logits.device)
            loss = F.cross_entropy(logits[:-1], following, reduction="sum")
            sums.append((float(loss), len(following)))
        return sums


def value(kind: str, said: Tensor, label: Tensor, before: Tensor) -> float:
    """A question's value, 0 to 1. `said` are the argmax tokens, `label` the expected tokens, and
    `before` the argmax tokens of the unedited model.

    edit, rephrase, portability: 1 if all tokens of the target are the argmax. neighbours: 1 if all
    argmax tokens are unchanged. unrelated: the share of positions whose argmax is unchanged.
    """
    if kind in LEARNT:
        return float(bool((said == label).all()))
    same = (said == before).float()
    return same.mean().item() if kind == UNRELATED else float(bool(same.all()))


def accuracy(kind: str, said: Tensor, label: Tensor, before: Tensor) -> float:
    """The share of a question's tokens that are correct, or unchanged for a text that must not
    change. EasyEdit calls it `rewrite_acc`, `rephrase_acc`, locality and portability."""
    return (said == (label if kind in LEARNT else before)).float().mean().item()
