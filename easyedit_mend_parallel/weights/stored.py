"""Which part of a target's weight this process stores, in a model that is split between processes.

Reads this from the weight: a DTensor, or a parameter that DeepSpeed's ZeRO-3 partitions. Knows
nothing of updates or stores.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.partitions import flat_range, is_partitioned
from easyedit_mend_parallel.weights.sharding import STRIDED, shard_of, slice_of
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.whole import is_sharded


@dataclass(frozen=True)
class Block:
    """The `rows` and `columns` of a weight, all of which this process stores.

    In a flat part they begin at position `start`; a part of two dimensions is one block.
    """

    rows: slice
    columns: slice
    start: int = 0

    def of(self, stored: Tensor) -> Tensor:
        """The block in the part that this process stores, as a matrix that shares its memory."""
        if stored.dim() == 2:
            return stored
        shape = (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start)
        return stored[self.start : self.start + shape[0] * shape[1]].view(shape)


@dataclass(frozen=True)
class StoredPart:
    """The part of a target's weight that this process stores: its `blocks`, at most three.

    `groups` are the groups of processes over which it is split, which communicate on devices of the
    type `device`; other processes have copies.
    """

    blocks: tuple[Block, ...]
    groups: tuple[Any, ...]
    device: str

    def summed(self, number: Tensor) -> Tensor:
        """The sum of all parts' numbers. Every process must call this; may change `number`."""
        number = number.to(self.device)
        for group in self.groups:
            dist.all_reduce(number, group=group)
        return number


def stored_part(model: nn.Module, target: Target) -> StoredPart | None:
    """The part of the weight of `target` in this process; None for a weight that is not split.

    Raises PlacementError as `shard_of` does, and for a part that has another size than its DTensor
    says.
    """
    shard_of(model, target)  # refuses unknown splits
    weight: Any = target.parameter(model)
    if is_partitioned(weight):
        start, stop = flat_range(weight)
        blocks = flat_blocks(start, stop, weight.ds_shape[1])
        return StoredPart(blocks, (weight.ds_process_group,), weight.device.type)
    if not is_sharded(weight):
        return None
    mesh, here, groups = weight.device_mesh, [slice(0, width) for width in weight.shape], []
    # Where both split one side, FSDP2's _StridedShard is a part of tensor parallelism's slice.
    dimensions = sorted(enumerate(weight.placements), key=lambda one: hasattr(one[1], STRIDED))
    for dimension, placement in dimensions:
        if not hasattr(placement, "dim"):
            continue
        group, side = mesh.get_group(dimension), placement.dim % 2
        outer = here[side]
        part = slice_of(outer.stop - outer.start, group, mesh.get_local_rank(dimension))
        here[side] = slice(outer.start + part.start, outer.start + part.stop)
        groups.append(group)
    sizes = tuple(part.stop - part.start for part in here)
    if tuple(weight.to_local().shape) != sizes:
        raise PlacementError(
            f"{target.name} has a part of shape {tuple(weight.to_local().shape)} on this process, "
            f"where its DTensor ({weight.placements}) says {sizes}: it cannot be edited in this "
            "split"
        )
    return StoredPart((Block(here[0], here[1]),), tuple(groups), mesh.device_type)


def flat_blocks(start: int, stop: int, width: int) -> tuple[Block, ...]:
    """The positions from `start` to `stop` of a flattened matrix of `width` columns as blocks: the
    end of a row, whole rows, the beginning of a row, as far as they are there."""
    blocks, at = [], start
    while at < stop:
        row, column = divmod(at, width)
        if column or stop - at < width:
            end = min(stop, (row + 1) * width)
            rows, columns = slice(row, row + 1), slice(column, column + end - at)
        else:
            last = stop // width
            end = last * width
            rows, columns = slice(row, last), slice(0, width)
        blocks.append(Block(rows, columns, at - start))
        at = end
    return tuple(blocks)


def split_code(model: nn.Module) -> int:
    """A number that is the same on two processes if they split `model` in the same way."""
    reshard(model)
    code = 0
    for name, parameter in model.named_parameters():
        split: Any = parameter
        how: tuple[Any, ...] = ()
        if is_partitioned(split):
            how = ("ZeRO-3", tuple(split.ds_shape), dist.get_world_size(split.ds_process_group))
        elif is_sharded(split):
            how = (split.placements, split.device_mesh.shape)
        code = zlib.crc32(str((name, how)).encode(), code)
    return code
