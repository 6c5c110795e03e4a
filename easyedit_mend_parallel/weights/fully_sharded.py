"""Recognises models that torch's FSDP splits, and puts FSDP2's weights back into their shards.

torch's `fully_shard` (FSDP2) keeps a shard of each weight in each process, and the whole weight
while its layer computes. Knows nothing of how a weight is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.modules import modules_around

STAGES = ("pp", "pipe", "pipeline", "stage", "stages")
"""Names that people give to a mesh dimension of pipeline stages."""


def is_fully_sharded(model: nn.Module, layer_name: str) -> bool:
    """Whether FSDP2 gathers the weights of the layer for its forward pass."""
    return any(is_split(module) for module in modules_around(model, layer_name))


def reshard(model: nn.Module, layer_name: str | None = None) -> None:
    """Put the weights that FSDP2 left whole after a forward pass back into their shards.

    FSDP2 leaves those of its outermost module whole, and those of modules with
    `reshard_after_forward=False`; the next forward pass gathers them from the shards again. With
    `layer_name` only those of that layer. No communication; a model without FSDP2 is not touched.
    """
    modules = model.modules() if layer_name is None else modules_around(model, layer_name)
    for module in modules:
        if is_split(module):
            module.reshard()  # type: ignore[operator]


@contextmanager
def ended(model: nn.Module) -> Iterator[None]:
    """If an exception leaves the context, FSDP2 forgets the forward pass that it ended, so that the
    next one begins anew (torch 2.12 and later can do that)."""
    try:
        yield
    except BaseException:
        for module in model.modules():
            if is_split(module) and hasattr(module, "reset_iter_state"):
                with suppress(RuntimeError):  # not an outermost module
                    module.reset_iter_state()  # type: ignore[operator]
        raise


def refuse_flat_parameters(model: nn.Module) -> None:
    """Raise PlacementError for a model that FSDP1 splits: its flat parameters are no weights."""
    for name, module in model.named_modules():
        if hasattr(type(module), "summon_full_params"):
            where = f"{name} is" if name else "the model is"
            raise PlacementError(
                f"{where} wrapped in {type(module).__name__} (FSDP1), whose flat parameters cannot "
                "be edited: use fully_shard (FSDP2; `fsdp_version: 2` in an accelerate config), a "
                "tensor-parallel plan (DistributedConfig(tp_plan='auto')) or a device_map"
            )


def refuse_stages(mesh: Any, of: str) -> None:
    """Raise PlacementError for a mesh that is a part of one with pipeline stages: each process then
    has some of the model's layers only."""
    root = getattr(mesh, "_get_root_mesh", lambda: mesh)() or mesh
    names = root.mesh_dim_names or ()
    found = [name for name in names if name.lower() in STAGES]
    if found and root.shape[names.index(found[0])] > 1:
        raise PlacementError(
            f"{of} lies on a mesh with a dimension of pipeline stages ({found[0]!r} of {names}): a "
            "model that is split into stages cannot be edited. Load it with fully_shard (FSDP2), a "
            "tensor-parallel plan or a device_map"
        )


def is_split(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module itself."""
    kind = type(module)
    return hasattr(kind, "unshard") and hasattr(kind, "reshard")
