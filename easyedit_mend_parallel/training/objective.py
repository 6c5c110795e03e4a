"""Computes the losses of a training step (Mitchell et al. 2022, equation 5).

These are the edits' loss on texts that test them, and the change of predictions in texts that must
not change and after the answers. Knows neither optimizers nor processes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.texts import (
    Text,
    Texts,
    as_index,
    continuation_positions,
    some_positions,
    target_positions,
)
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


@dataclass(frozen=True)
class Measuring:
    """How the texts of a step are measured.

    The loss is cedit × edit + cloc × (locality + continuation), see `Measured`. At most
    `locality_positions` positions of each locality text are compared. `continued` {text: the same
    text with a continuation} is for texts that test an edit; at most `n_continued` positions of
    each continuation are compared.
    """

    cedit: float
    cloc: float
    locality_positions: int
    n_continued: int = 0
    continued: Mapping[Text, Text] = field(default_factory=dict)

    def loss(self, edit: Tensor, locality: Tensor, continuation: Tensor) -> Tensor:
        return self.cedit * edit + self.cloc * (locality + continuation).to(edit.device)


@dataclass(frozen=True)
class Measured:
    """Means over one step's examples, as scalars. `edit`: the loss (nats per label) of the texts
    that test the edits. `locality`: the KL divergence (nats per position) in the locality texts,
    caused by the edits. `continuation`: the same after the answers, zero for an example without a
    continuation. `success`: the share of test texts whose labels are all the argmax. `unchanged`:
    the share of positions of locality texts whose argmax is unchanged. Only `loss` is sure to have
    a gradient. `updates` are the examples' own ones."""

    loss: Tensor
    edit: Tensor
    locality: Tensor
    continuation: Tensor
    success: Tensor
    unchanged: Tensor
    updates: dict[str, LowRankUpdate]


@dataclass(frozen=True)
class _Compared:
    """Positions at which predictions are compared with the base model's: `positions` of sequence
    `row`, a text of example `owner`. With `after` they are after its answer."""

    row: int
    owner: int
    text: Text
    positions: list[int]
    after: bool

    def all_in(self, batch: Batch, row: int) -> list[int]:
        """All comparable positions of sequence `row` of `batch`, which has the same text."""
        return (continuation_positions if self.after else target_positions)(batch, row)


def measure_step(
    texts: Texts,
    targets: Sequence[Target],
    network: Hypernetwork,
    chosen: Sequence[Sample],
    how: Measuring,
) -> Measured:
    """Edit every example by itself, and measure each edit on its own texts, in one batch.

    Differentiable in the network's parameters.
    """
    batch = texts.batch([request_of(sample) for sample in chosen])
    own = propose(texts.model, targets, batch, network).updates
    return measure_edited(texts, targets, chosen, own, torch.arange(len(chosen)), how)


def request_of(sample: Sample) -> Text:
    request = sample.example.request
    return Text(request.prompt, request.target_text)


def measure_edited(
    texts: Texts,
    targets: Sequence[Target],
    chosen: Sequence[Sample],
    updates: Mapping[str, LowRankUpdate],
    edited_by: Tensor,
    how: Measuring,
) -> Measured:
    """Measure each example's texts under the rows of `updates` {target name: update} whose request
    is `edited_by[example]`. Differentiable in the updates."""
    plain = [
        (number, Text(prompt, sample.example.request.target_after(prompt)))
        for number, sample in enumerate(chosen)
        for prompt in sample.prompts
    ]
    tried = [(number, how.continued.get(text, text)) for number, text in plain]
    preserved = [
        (number, Text(text.prompt, text.target))
        for number, sample in enumerate(chosen)
        for text in sample.locality
    ]
    # Positions are drawn for each text of an example, whatever else is in its batch.
    seeds = [f"{sample.seed}/{n}" for sample in chosen for n in range(len(sample.locality))]
    after_seeds = [
        f"{sample.seed}/after{n}" for sample in chosen for n in range(len(sample.prompts))
    ]
    batch = texts.batch([text for _, text in tried + preserved])
    route = edited_by[[number for number, _ in tried + preserved]]
    labelled = [target_positions(batch, row) for row in range(len(tried))]
    compared = [
        _Compared(
            len(tried) + row,
            number,
            text,
            some_positions(batch, len(tried) + row, how.locality_positions, seeds[row]),
            after=False,
        )
        for row, (number, text) in enumerate(preserved)
    ]
    compared += [
        _Compared(
            row,
            number,
            text,
            _first_and_some(continuation_positions(batch, row), how.n_continued, after_seeds[row]),
            after=True,
        )
        for row, (number, text) in enumerate(tried)
        if plain[row][1] in how.continued
    ]
    by_name = {target.name: target for target in targets}
    with attached(texts.model, by_name, updates, route):
        asked = [*enumerate(labelled), *((one.row, one.positions) for one in compared)]
        sequence, position = _where(asked)
        after = batch.predictions(texts.model, sequence, position).float()
    before = _unedited(texts, batch, compared)
    sequence, position = as_index(labelled)
    labels = batch.labels[sequence, position].to(after.device)
    edited, moved = after[: len(labels)], after[len(labels) :]
    each = F.cross_entropy(edited, labels, reduction="none")
    owners = [owner for owner, _ in tried]
    edit = (each * _share(labelled, owners).to(each.device)).sum()
    old, new = before.log_softmax(-1), moved.log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1)
    of_texts = [c for c in compared if not c.after]
    shares = _share([c.positions for c in of_texts], [c.owner for c in of_texts])
    n_texts = len(shares)
    locality = (divergence[:n_texts] * shares.to(divergence.device)).sum()
    continuations = [c for c in compared if c.after]
    of_continuations = _share(
        [c.positions for c in continuations], [c.owner for c in continuations], len(chosen)
    )
    continuation = (divergence[n_texts:] * of_continuations.to(divergence.device)).sum()
    with torch.no_grad():
        right = torch.split(edited.argmax(-1) == labels, [len(found) for found in labelled])
        every = torch.stack([one.all() for one in right]).float()
        success = (every * _share([[0]] * len(tried), owners).to(every.device)).sum()
        same = (moved[:n_texts].argmax(-1) == before[:n_texts].argmax(-1)).float()
        unchanged = (same * shares.to(same.device)).sum()
    loss = how.loss(edit, locality, continuation)
    return Measured(loss, edit, locality, continuation, success, unchanged, dict(updates))


@torch.no_grad()
def _unedited(texts: Texts, batch: Batch, compared: Sequence[_Compared]) -> Tensor:
    """The base model's logits at the positions of `compared`, computed with `batch`."""
    alone = texts.batch([one.text for one in compared])
    # The same positions; in another batch, padding shifts them.
    there = []
    for row, one in enumerate(compared):
        of_alone, in_batch = one.all_in(alone, row), one.all_in(batch, one.row)
        there.append([of_alone[in_batch.index(position)] for position in one.positions])
    return alone.predictions(texts.model, *as_index(there)).float()


def _first_and_some(positions: Sequence[int], limit: int, seed: str) -> list[int]:
    """At most `limit` of `positions`, always including the first one."""
    if len(positions) <= limit:
        return list(positions)
    return [positions[0], *sorted(random.Random(seed).sample(positions[1:], limit - 1))]


def _where(found: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """The pairs (index of a sequence, its positions) as two tensors (n,), sequence and position."""
    pairs = [(row, position) for row, positions in found for position in positions]
    sequence, position = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return sequence, position


def _share(
    found: Sequence[Sequence[int]], owners: Sequence[int], n_examples: int | None = None
) -> Tensor:
    """Each position's weight in the mean over examples (those that have texts, or `n_examples`).

    An example counts as the mean over its texts, a text as the mean over its positions. The mean
    of a batch is therefore the same in whichever parts it is computed."""
    texts = Counter(owners)
    return torch.tensor(
        [
            1 / len(positions) / texts[owner] / (n_examples or len(texts))
            for positions, owner in zip(found, owners, strict=True)
            for _ in positions
        ]
    )
