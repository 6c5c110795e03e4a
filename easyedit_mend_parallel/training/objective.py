"""What one training step minimises: the edits' loss on texts that try them out, and how far they
move texts that shall stay (Mitchell et al. 2022, equation 5).

Knows neither optimizers nor processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.forward.texts import (
    Text,
    Texts,
    as_index,
    some_positions,
    target_positions,
)
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


@dataclass(frozen=True)
class Measured:
    """Of one step's examples, means as scalars: `edit`, the loss (nats for each target token) of
    the texts that try the edits out; `locality`, the KL divergence (nats for each position) that
    the edits cause in the texts that shall stay; `success`, the share of the former of which
    every target token is the argmax; `unchanged`, the share of the latter's positions whose
    argmax stays. Only the losses have a gradient."""

    edit: Tensor
    locality: Tensor
    success: Tensor
    unchanged: Tensor
    updates: dict[str, LowRankUpdate]


def measure_step(
    texts: Texts,
    targets: Sequence[Target],
    network: Hypernetwork,
    chosen: Sequence[Sample],
    *,
    locality_positions: int,
) -> Measured:
    """Edit every example by itself, and measure each edit on its own texts, in one batch.

    `locality_positions` is how many positions of each text are compared at most. Differentiable
    in the network's parameters.
    """
    requests = [Text(d.example.request.prompt, d.example.request.target_text) for d in chosen]
    updates = propose(texts.model, targets, texts.batch(requests), network).updates
    tried = [
        (number, Text(prompt, sample.example.request.target_text))
        for number, sample in enumerate(chosen)
        for prompt in sample.prompts
    ]
    preserved = [
        (number, Text(text.prompt, text.target))
        for number, sample in enumerate(chosen)
        for text in sample.locality
    ]
    batch = texts.batch([text for _, text in tried + preserved])
    route = torch.tensor([number for number, _ in tried + preserved])
    labelled = [target_positions(batch, row) for row in range(len(tried))]
    compared = [
        some_positions(batch, len(tried) + row, locality_positions, f"{chosen[number].seed}/{row}")
        for row, (number, _) in enumerate(preserved)
    ]
    by_name = {target.name: target for target in targets}
    with attached(texts.model, by_name, updates, route):
        after = batch.predictions(texts.model, *as_index([*labelled, *compared])).float()
    alone = texts.batch([text for _, text in preserved])
    with torch.no_grad():
        # The same positions, which left padding puts elsewhere in another batch.
        there = [
            [of_alone[in_batch.index(position)] for position in found]
            for row, found in enumerate(compared)
            for of_alone in [target_positions(alone, row)]
            for in_batch in [target_positions(batch, len(tried) + row)]
        ]
        before = alone.predictions(texts.model, *as_index(there)).float()
    sequence, position = as_index(labelled)
    labels = batch.labels[sequence, position].to(after.device)
    edited, moved = after[: len(labels)], after[len(labels) :]
    each = F.cross_entropy(edited, labels, reduction="none")
    owners = [owner for owner, _ in tried]
    edit = (each * _share(labelled, owners).to(each.device)).sum()
    old, new = before.log_softmax(-1), moved.log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1)
    shares = _share(compared, [owner for owner, _ in preserved])
    locality = (divergence * shares.to(divergence.device)).sum()
    with torch.no_grad():
        right = torch.split(edited.argmax(-1) == labels, [len(found) for found in labelled])
        every = torch.stack([one.all() for one in right]).float()
        success = (every * _share([[0]] * len(tried), owners).to(every.device)).sum()
        same = (moved.argmax(-1) == before.argmax(-1)).float()
        unchanged = (same * shares.to(same.device)).sum()
    return Measured(edit, locality, success, unchanged, updates)


def _share(found: Sequence[Sequence[int]], owners: Sequence[int]) -> Tensor:
    """Each position's weight in the mean over examples: an example is the mean over its texts, a
    text the mean over its positions. So a batch is the mean of its parts, however it is split."""
    texts = Counter(owners)
    return torch.tensor(
        [
            1 / len(positions) / texts[owner] / len(texts)
            for positions, owner in zip(found, owners, strict=True)
            for _ in positions
        ]
    )
