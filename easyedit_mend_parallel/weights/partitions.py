"""Reads what DeepSpeed's ZeRO-3 keeps of a parameter in this process: a flat part of its values.

ZeRO-3 flattens a weight, pads it at the end and gives each process an equal part (`ds_tensor`).
The parameter itself has values only while its layer computes. Does not import DeepSpeed, and knows
nothing of layers or updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


def is_partitioned(tensor: object) -> bool:
    """Whether ZeRO-3 partitions the parameter. A detached copy of it no longer says so."""
    return hasattr(tensor, "ds_id")


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter: a partitioned one has none of its own between passes."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def flat_range(parameter: Any) -> tuple[int, int]:
    """The first position of this process's part in the flattened parameter, and the one after its
    last, without the padding."""
    size, whole = parameter.ds_tensor.ds_numel, parameter.ds_numel
    start = min(whole, size * dist.get_rank(parameter.ds_process_group))
    return start, min(whole, start + size)


def flat_part(parameter: Any) -> Tensor:
    """(n,): this process's part itself, not a copy, without the padding; the last processes may
    have nothing."""
    start, stop = flat_range(parameter)
    part: Tensor = parameter.ds_tensor.detach()[: stop - start]
    return part


def whole_of_parts(part: Tensor, like: Any) -> Tensor:
    """The whole parameter from every process's `part` (n,), which is split as `like` is; or `part`
    itself where it is whole. Every process must call this. On the device where `like` computes."""
    if part.shape == like.ds_shape:
        return part
    group, size = like.ds_process_group, like.ds_tensor.ds_numel
    mine = F.pad(part.to(like.device), (0, size - len(part)))
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine, group=group)
    return torch.cat(parts)[: like.ds_numel].view(like.ds_shape)


def release(parameters: Iterable[Any], inflight: Any) -> None:
    """Free the values of partitioned `parameters` that are gathered, or are about to be
    (`inflight`, DeepSpeed's {parameter: handle}).

    The parts stay, and the next forward pass gathers them again, also those of parameters that
    DeepSpeed otherwise leaves whole. No communication starts.
    """
    for parameter in parameters:
        if not is_partitioned(parameter):
            continue
        handle = inflight.pop(parameter, None)
        if handle is not None:
            handle.wait()
        parameter.ds_active_sub_modules.clear()
        if parameter.ds_status.name == "AVAILABLE":
            parameter.partition()


def master_of(parameter: Any) -> Tensor | None:
    """The values (n,) from which the engine's optimizer makes this process's part at each step, in
    the optimizer's dtype (fp32), without the padding. On the device where the parameter computes;
    a copy if the optimizer is offloaded (`set_master`).

    None if the engine has no optimizer for the parameter, or if the optimizer changes the part
    itself.
    """
    if not _is_optimized(parameter):
        return None
    from deepspeed.utils import safe_get_local_fp32_param

    with _optimized(parameter):
        values: Tensor | None = safe_get_local_fp32_param(parameter)
    if values is None or values.data_ptr() == parameter.ds_tensor.data_ptr():
        return None
    start, stop = flat_range(parameter)
    return values.detach()[: stop - start]


def set_master(parameter: Any, values: Tensor) -> None:
    """Set the values (n,) that `master_of` gives; they may be that tensor, changed in place."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

    with _optimized(parameter):
        padded = safe_get_local_fp32_param(parameter)
        if padded.data_ptr() != values.data_ptr():
            padded = padded.detach().clone()
            padded[: len(values)] = values
            safe_set_local_fp32_param(parameter, padded)


def _is_optimized(parameter: Any) -> bool:
    groups = getattr(getattr(parameter, "_z3_optimizer", None), "fp16_groups", ())
    return any(parameter is one for group in groups for one in group)


@contextmanager
def _optimized(parameter: Any) -> Iterator[None]:
    """While the context lasts, DeepSpeed takes the parameter for one that it optimizes: a parameter
    that was frozen later still gets its values from the optimizer at each step."""
    frozen = not parameter.requires_grad
    try:
        if frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        if frozen:
            parameter.requires_grad_(False)
