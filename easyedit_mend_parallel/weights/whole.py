"""Gathers whole tensors of a model that is split between processes: of DTensors, and of parameters
that DeepSpeed's ZeRO-3 partitions. Knows nothing of layers or updates.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.partitions import flat_part, is_partitioned, whole_of_parts


def is_distributed(tensor: Tensor) -> bool:
    """Whether `tensor` is a part of one that is split between processes: a DTensor, or a parameter
    that ZeRO-3 partitions. Does not import DTensor (half a second)."""
    return is_sharded(tensor) or is_partitioned(tensor)


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor."""
    return hasattr(tensor, "to_local")


def local_part(parameter: Tensor) -> Tensor:
    """What this process stores of a parameter, detached, in the same memory: a DTensor's shard,
    ZeRO-3's part (flat, without its padding), or all of a parameter that is not split."""
    if is_partitioned(parameter):
        return flat_part(parameter)
    if not is_sharded(parameter):
        return parameter.detach()
    shard: Tensor = parameter.detach().to_local()  # type: ignore[attr-defined]
    return shard


def whole_tensor(part: Tensor, like: Tensor | None = None) -> Tensor:
    """The whole tensor of `part`, the same on every process. Do not write to it.

    `part` says itself how it is split, or is this process's share of a tensor that is split like
    `like`. A tensor that is not split is returned unchanged. Every process must call this.
    """
    split: Any = part if like is None else like
    if is_partitioned(split):
        return whole_of_parts(flat_part(part) if is_partitioned(part) else part, split)
    if not is_sharded(split):
        return part
    from torch.distributed.tensor import DTensor

    if not isinstance(part, DTensor):
        part = DTensor.from_local(
            part, split.device_mesh, split.placements, shape=split.shape, stride=split.stride()
        )
    if part.device.type != part.device_mesh.device_type:  # FSDP2's CPUOffloadPolicy
        part = part.to(part.device_mesh.device_type)
    whole: Tensor = part.full_tensor()  # type: ignore[attr-defined]
    return whole


def whole_logits(model: nn.Module, logits: Tensor) -> Tensor:
    """`logits` (B, T, vocabulary) with all columns, also if the model leaves them split.

    Raises PlacementError if each process has some columns and it is not known which.
    """
    if is_distributed(logits):
        return whole_tensor(logits)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if weight is not None and is_sharded(weight) and logits.shape[-1] < weight.shape[0]:
        raise PlacementError(
            f"the model's logits have {logits.shape[-1]} of {weight.shape[0]} columns on this "
            "process: give its output layer the style colwise_gather_output in the plan"
        )
    return logits
