"""Measures a training step whose edits are solved together, some of its texts at a time.

Two phases, as MALMEN has (Tan, Zhang and Fu 2024, section 3.3): the gradient at the solved updates
is accumulated over the texts, and then passes through the systems to the hypernetwork. What is
held at once beside the rows does not depend on how many edits are solved together. Knows neither
how systems are solved nor how texts are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.forward.texts import Texts
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.training.objective import (
    Measured,
    Measuring,
    measure_edited,
    request_of,
)
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.training.solving import StepSolver, group_of_each
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate


def measure_solved_step(
    texts: Texts,
    targets: Sequence[Target],
    network: Hypernetwork,
    parts: Sequence[Sequence[Sample]],
    how: Measuring,
    solver: StepSolver,
    sizes: Sequence[int],
    scale: float = 1.0,
) -> Measured:
    """Edit the examples of all `parts` in groups of these `sizes`, each solved together, and
    measure each example's texts under the update of its group.

    One part at a time passes the model, with its gradient. The figures are means over the parts;
    only `loss` has a gradient, in the network's parameters. `scale` multiplies the loss while a
    part's gradient is computed (torch's `GradScaler`), and is taken out again.
    """
    batches = [
        texts.batch([solver.continued.get(text, text) for text in map(request_of, part)])
        for part in parts
    ]
    proposed = [propose(texts.model, targets, batch, network).updates for batch in batches]
    first = [sum(map(len, parts[:number])) for number in range(len(parts))]
    own = {
        target.name: LowRankUpdate.cat(
            [found[target.name].numbered_from(n) for found, n in zip(proposed, first, strict=True)]
        )
        for target in targets
    }
    updates = solver.solved(batches, own, sizes)
    edited_by, cut = group_of_each(sizes), _cut(updates)
    ends = _differentiable(cut)
    gradients, measured = [torch.zeros_like(end) for end in ends], []
    for start, part in zip(first, parts, strict=True):
        route = edited_by[start : start + len(part)]
        found = measure_edited(texts, targets, part, cut, route, how)
        with interrupts_pass():
            of_part = torch.autograd.grad(found.loss * scale, ends, allow_unused=True)
        for gradient, more in zip(gradients, of_part, strict=True):
            if more is not None:
                gradient += more / (scale * len(parts))
        measured.append([value.detach() for value in _values(found)])
    loss, edit, locality, continuation, success, unchanged = (
        torch.stack(values).mean(0) for values in zip(*measured, strict=True)
    )
    for gradient, end in zip(gradients, _differentiable(updates), strict=True):
        loss = loss + (gradient * (end - end.detach())).sum().to(loss.device)
    return Measured(loss, edit, locality, continuation, success, unchanged, own)


def _values(found: Measured) -> list[Tensor]:
    """All figures, in the order of the fields."""
    figures = [found.edit, found.locality, found.continuation, found.success, found.unchanged]
    return [found.loss, *figures]


def _cut(updates: Mapping[str, LowRankUpdate]) -> dict[str, LowRankUpdate]:
    """The same updates, as tensors to which a gradient can be computed and from which none goes
    on."""
    found = {}
    for name, update in updates.items():
        keys, values = (
            matrix.detach().requires_grad_(matrix.requires_grad)
            for matrix in (update.keys, update.values)
        )
        found[name] = LowRankUpdate(keys, values, update.request, update.unit_keys)
    return found


def _differentiable(updates: Mapping[str, LowRankUpdate]) -> list[Tensor]:
    matrices = [m for update in updates.values() for m in (update.keys, update.values)]
    return [matrix for matrix in matrices if matrix.requires_grad]
