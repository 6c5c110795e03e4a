"""Compares an update with the gradient that it was made from: norms, spread and angle.

Computes everything from products between token rows (n × n), on their device, and forms nothing of
a weight's size. Knows no networks and no losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from easyedit_mend_parallel.forward.capture import TokenRows
from easyedit_mend_parallel.weights.update import LowRankUpdate


def measure(update: LowRankUpdate) -> dict[str, Tensor]:
    """The norm (`mag`) and the standard deviation (`std`) of ΔW's entries, as scalars."""
    squares = inner_product(update, update).clamp(min=0)
    entries = update.keys.shape[1] * update.values.shape[1]
    total = (update.keys.sum(1) * update.values.sum(1)).sum()
    variance = (squares - total**2 / entries) / max(entries - 1, 1)
    return {"mag": squares.sqrt(), "std": variance.clamp(min=0).sqrt()}


def compare(update: LowRankUpdate, gradient: LowRankUpdate) -> dict[str, Tensor]:
    """The norm of the difference of two (`diff`), and the cosine of their angle (`cos`)."""
    difference = LowRankUpdate(
        torch.cat([gradient.keys, update.keys]),
        torch.cat([gradient.values, -update.values]),
        torch.cat([gradient.request, update.request]),
    )
    lengths = update.norm() * gradient.norm()
    cosine = inner_product(update, gradient) / lengths.clamp(min=torch.finfo(torch.float32).tiny)
    return {"diff": difference.norm(), "cos": cosine}


def gradient_of(rows: TokenRows) -> LowRankUpdate:
    """The true gradient of a target's weight, as a low-rank update."""
    return LowRankUpdate(rows.x.float(), rows.delta.float(), rows.request)


def inner_product(one: LowRankUpdate, other: LowRankUpdate) -> Tensor:
    """Σ of the products of the entries of two ΔW of one shape and one device."""
    return ((one.keys @ other.keys.T) * (one.values @ other.values.T)).sum()
