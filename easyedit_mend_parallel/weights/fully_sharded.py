"""Recognises models that torch's FSDP splits, and puts FSDP2's weights back into their shards.

torch's `fully_shard` (FSDP2) keeps a shard of each weight in each process, and the whole weight
while its layer computes. Knows nothing of how a weight is split.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
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
def left_out(modules: Sequence[nn.Module]) -> Iterator[None]:
    """While the context lasts, a call of one of `modules` gathers no weights, since it needs none.

    Modules that share a group with others (`fully_shard([one, other])`) are still gathered: FSDP2
    has to see a call of each.
    """
    hooked = [module for module in modules if is_split(module) and _is_alone(module)]
    names = ("_forward_pre_hooks", "_forward_hooks")
    kept = [{name: vars(module)[name] for name in names} for module in hooked]
    try:
        for module in hooked:
            vars(module).update({name: OrderedDict() for name in names})
        yield
    finally:
        for module, hooks in zip(hooked, kept, strict=True):
            vars(module).update(hooks)


def _is_alone(module: nn.Module) -> bool:
    """Whether FSDP2 gathers the weights of `module` for it alone. False if it does not say."""
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    return len(getattr(state, "_modules", ())) == 1


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
