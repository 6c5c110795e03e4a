"""Solves the edits of a training step together, in groups, as a sequence or a batch solves them.

The network learns through the solve: updates that stay effective beside those of other edits.
Knows neither losses nor which texts test an edit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import layer_rows
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.method.growing_system import SystemOptions, empty_systems
from easyedit_mend_parallel.method.least_squares import scale_of
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


def group_sizes(edits: int, largest: int, seed: str) -> list[int]:
    """Sizes of groups, drawn uniformly from 1 to `largest`, that `edits` edits are split into.

    The last group has what is left. The same for the same `seed`.
    """
    rng, sizes = random.Random(seed), []
    while edits:
        sizes.append(min(edits, rng.randint(1, largest)))
        edits -= sizes[-1]
    return sizes


def group_of_each(sizes: Sequence[int]) -> Tensor:
    """(n,): the index of each edit's group, for groups of these sizes."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


class StepSolver:
    """Makes one update for each group of a step's edits, differentiable in the edits' own updates.

    One least-squares system for each target and group (see `GrowingSystem`), with `preserved`
    inputs of preserved text. As in a sequence, the inputs are those of each edit's own edited
    forward pass, without a gradient, and a group of one edit has that edit's own update, unless
    nothing is to change after the answer (`continuation_weight`): then it is solved too.
    `continued` {text of a request: the text with a continuation} is for that.
    """

    def __init__(
        self,
        texts: Texts,
        targets: Sequence[Target],
        options: SystemOptions,
        preserved: PreservedInputs,
        continued: Mapping[Text, Text] | None = None,
    ) -> None:
        self.continued = continued or {}
        self._texts, self._targets = texts, targets
        self._continuation_weight = options.continuation_weight
        self._systems = empty_systems(targets, options, preserved)

    def solved(
        self, batch: Batch, own: Mapping[str, LowRankUpdate], sizes: Sequence[int]
    ) -> dict[str, LowRankUpdate]:
        """{target name: update}, whose rows have the index of their group as their request.

        `own` are the own updates of the requests of `batch`, of which the first `sizes[0]` are the
        first group, and so on. Raises UpdateError for a system that cannot be solved.
        """
        group = group_of_each(sizes)
        model, by_name = self._texts.model, {target.name: target for target in self._targets}
        constant = {name: update.detach() for name, update in own.items()}
        goes_on, still = self._continuation_weight > 0, batch.after_mask(batch.labels.shape[1])
        with attached(model, by_name, constant, batch.request, still if goes_on else None):
            seen = layer_rows(model, self._targets, batch, after=goes_on)
        found = {}
        for name, rows in seen.items():
            d = own[name].added(rows.x, route=rows.request).masked_fill(rows.after[:, None], 0.0)
            x = rows.x * scale_of(rows.after, self._continuation_weight)
            of = group.to(rows.request.device)[rows.request]
            parts = []
            for number, size in enumerate(sizes):
                if size == 1 and not goes_on:
                    request = int((group == number).nonzero())
                    part = own[name].of_request(request)
                else:
                    here = of == number
                    part = self._systems[name].alone(x[here], d[here], rows.label_mask[here])
                parts.append(_of_group(part, number))
            found[name] = LowRankUpdate.cat(parts)
        return found


def _of_group(update: LowRankUpdate, number: int) -> LowRankUpdate:
    request: Tensor = torch.full_like(update.request, number)
    return LowRankUpdate(update.keys, update.values, request)
