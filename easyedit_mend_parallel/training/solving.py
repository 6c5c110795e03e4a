"""Solves the edits of a training step together, in groups, as a sequence or a batch solves them.

The network learns through the solve: updates that stay effective beside those of other edits.
Knows neither losses nor which texts test an edit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """Sizes of the groups that the `edits` edits of a step are split into.

    They are the same, but for the last group, which has what is left.
    The size is drawn anew for each step, from 1 to `largest`, with a probability that falls like
    1 / size: single edits, tens and hundreds are seen about as often as each other. The same for
    the same `seed`.
    """
    size = min(largest, int((largest + 1) ** random.Random(seed).random()))
    whole, left = divmod(edits, size)
    return [size] * whole + [left] * (left > 0)


def group_of_each(sizes: Sequence[int]) -> Tensor:
    """(n,): the index of each edit's group, for groups of these sizes."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


class StepSolver:
    """Makes one update for each group of a step's edits, differentiable in the edits' own updates.

    One least-squares system for each target and group (see `GrowingSystem`), with `preserved`
    inputs of preserved text. As in a sequence, the inputs are those of each edit's own edited
    forward pass, without a gradient, and a group of one edit has that edit's own update, unless
    the options say that one request is solved, too (`SystemOptions.solves_one`).
    `continued` {text of a request: the text with a continuation} is for a `continuation_weight`.
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
        self._goes_on = options.continuation_weight > 0
        self._solves_one = options.solves_one
        self._systems = empty_systems(targets, options, preserved)

    def solved(
        self,
        batches: Sequence[Batch],
        own: Mapping[str, LowRankUpdate],
        sizes: Sequence[int],
    ) -> dict[str, LowRankUpdate]:
        """{target name: update}, whose rows have the index of their group as their request.

        `own` are the own updates of the requests of `batches`, numbered through, of which the first
        `sizes[0]` are the first group, and so on. One of `batches` at a time passes the model.
        Raises UpdateError for a system that cannot be solved.
        """
        group, first = group_of_each(sizes), 0
        parts: dict[str, list[_Rows]] = {name: [] for name in own}
        for batch in batches:
            here = {n: _of_requests(u, first, batch.n_requests) for n, u in own.items()}
            for name, rows in self._rows(batch, here).items():
                parts[name].append(replace(rows, request=rows.request + first))
            first += batch.n_requests
        return {
            name: self._solved(name, own[name], _Rows.cat(found), group, sizes)
            for name, found in parts.items()
        }

    def _rows(self, batch: Batch, own: Mapping[str, LowRankUpdate]) -> dict[str, _Rows]:
        """What each edit of `batch` wants of the targets, in its own edited forward pass."""
        model, by_name = self._texts.model, {target.name: target for target in self._targets}
        constant = {name: update.detach() for name, update in own.items()}
        still = batch.after_mask(batch.labels.shape[1]) if self._goes_on else None
        with attached(model, by_name, constant, batch.request, still):
            seen = layer_rows(model, self._targets, batch, after=self._goes_on)
        found = {}
        for name, rows in seen.items():
            d = own[name].added(rows.x, route=rows.request).masked_fill(rows.after[:, None], 0.0)
            x = rows.x * scale_of(rows.after, self._continuation_weight)
            found[name] = _Rows(x, d, rows.request, rows.label_mask)
        return found

    def _solved(
        self, name: str, own: LowRankUpdate, rows: _Rows, group: Tensor, sizes: Sequence[int]
    ) -> LowRankUpdate:
        of, parts = group.to(rows.request.device)[rows.request], []
        for number, size in enumerate(sizes):
            if size == 1 and not self._solves_one:
                part = own.of_request(int((group == number).nonzero()))
            else:
                here = of == number
                part = self._systems[name].alone(rows.x[here], rows.d[here], rows.labelled[here])
            parts.append(_of_group(part, number))
        return LowRankUpdate.cat(parts)


@dataclass(frozen=True)
class _Rows:
    """Rows of one target's system: inputs `x` (n, in), weighted, and wanted changes `d` (n, out);
    of which request, and whether the token predicts a label (n,)."""

    x: Tensor
    d: Tensor
    request: Tensor
    labelled: Tensor

    @classmethod
    def cat(cls, parts: Sequence[_Rows]) -> _Rows:
        fields = ([part.x, part.d, part.request, part.labelled] for part in parts)
        return cls(*(torch.cat(values) for values in zip(*fields, strict=True)))


def _of_requests(update: LowRankUpdate, first: int, count: int) -> LowRankUpdate:
    """The rows of `count` requests from `first` on, numbered from 0."""
    mine = ((update.request >= first) & (update.request < first + count)).nonzero().flatten()
    rows = (update.keys[mine], update.values[mine], update.request[mine])
    return LowRankUpdate(*rows).numbered_from(-first)


def _of_group(update: LowRankUpdate, number: int) -> LowRankUpdate:
    request: Tensor = torch.full_like(update.request, number)
    return LowRankUpdate(update.keys, update.values, request)
