"""Computes the norm of a weight, on any placement: the unit of an untrained edit's step.

Reads a weight if its store can, and never changes one. Knows nothing of updates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import PlacementError, UpdateError
from easyedit_mend_parallel.weights.offload import kept_weight
from easyedit_mend_parallel.weights.placement import place
from easyedit_mend_parallel.weights.stored import stored_part
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.stores.protocol import WeightStore
from easyedit_mend_parallel.weights.target import Target

PROBES, SEED = 64, 0
"""Number of random inputs for a layer whose weight cannot be read, and their seed."""


@torch.no_grad()
def weight_norm(model: nn.Module, target: Target) -> float:
    """‖W‖ (Frobenius) of the target's current weight; of the whole weight if it is sharded.

    For a weight that no store can read (packed, or kept in an unknown way) the norm is estimated
    from the layer's outputs for random inputs, within a few per cent. Every process that holds a
    shard must call this function.
    """
    if target.expert is not None:
        kept = kept_weight(model, target.name)
        if kept is None or not kept.is_floating_point():
            raise UpdateError(
                f"{target.name} cannot be read, and an untrained edit's step is measured by its "
                "norm: load the model without quantization_config"
            )
        return float(torch.linalg.vector_norm(kept, dtype=torch.float32))
    try:
        store = store_for(model, target)
    except (UpdateError, PlacementError):
        return _estimated(model, target)
    if not isinstance(store, WeightStore):
        return _estimated(model, target)
    square = torch.linalg.vector_norm(store.read(), dtype=torch.float32) ** 2
    part = stored_part(model, target)
    return float((square if part is None else part.summed(square)).sqrt())


@torch.no_grad()
def _estimated(model: nn.Module, target: Target) -> float:
    """‖W‖ from E‖W g‖² = ‖W‖², g standard normal (Hutchinson 1990, of the trace of WᵀW)."""
    layer = target.layer(model)
    dtype = getattr(model, "dtype", torch.float32)
    probes = torch.randn(
        PROBES, target.in_features, generator=torch.Generator().manual_seed(SEED)
    ).to(place(model, target).device, dtype)
    # Not __call__: its hooks may add an edit or capture it. accelerate wraps forward.
    answers: Tensor = layer.forward(torch.cat([probes, torch.zeros_like(probes[:1])]))
    moved = (answers[:-1] - answers[-1]).float()  # without the bias
    return float(moved.square().sum(1).mean().sqrt())
