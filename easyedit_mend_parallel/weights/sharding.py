"""How a target's layer computes in a model that is split between processes, and how its token
rows are gathered.

Reads this from the weight, not from the plan that loaded it. An edit sends only token rows between
processes. Knows nothing of hypernetworks or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.fully_sharded import is_fully_sharded, refuse_stages
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.whole import is_distributed, is_sharded, whole_tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Side = Literal["in", "out"]
STRIDED = "split_factor"
"""What a _StridedShard has, and no other placement."""


@dataclass(frozen=True)
class Shard:
    """How one target's weight is split over the processes of `group`.

    `side` is the side that is split, or None if each process holds the whole weight; `width` is
    the whole width of that side, and `here` this process's slice of it. Slices are those of
    `torch.chunk`: the last process may hold less than the others, or nothing.
    """

    target: str
    group: Any
    side: Side | None
    width: int
    here: slice

    def whole(self, rows: Tensor, side: Side) -> Tensor:
        """Rows (..., width) of `side` with all their columns, the same on every process.

        Every process must call this. Rows that are already whole are returned unchanged.
        """
        if is_distributed(rows):
            return whole_tensor(rows)
        if not self._split(rows.shape[-1], side):
            return rows
        mine = rows.flatten(0, -2)
        chunk = _chunk(self.width, self.group)
        padded = F.pad(mine, (0, chunk - mine.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat(parts, -1)[:, : self.width].reshape(*rows.shape[:-1], self.width)

    def match(self, x: Tensor, keys: Tensor) -> Tensor:
        """x keysᵀ, whole on every process, from this process's columns of x (..., in).

        Differentiable: gradients of `keys` (n, in) and of x are those of an unsplit layer.
        """
        if not self._split(x.shape[-1], "in"):
            return x @ keys.T
        return _summed(x @ _shared(keys, self.group)[:, self.here].T, self.group)

    def spread(self, match: Tensor, values: Tensor, width: int) -> Tensor:
        """match values: this process's columns, for a layer output of `width` columns.

        Differentiable: gradients of `match` (..., n) and `values` (n, out) are whole.
        """
        if not self._split(width, "out"):
            return match @ values
        return _shared(match, self.group) @ _shared(values, self.group)[:, self.here]

    def _split(self, width: int, side: Side) -> bool:
        """Whether rows of `width` columns on `side` are a slice, and not whole.

        The rows decide, since plans differ: `colwise_gather_output` gathers the output of a layer
        that is split on that side, `rowwise_split_input` takes a whole input.
        """
        if side != self.side or width == self.width:
            return False
        if width != self.here.stop - self.here.start:
            raise PlacementError(
                f"{self.target} is split into {self.here.stop - self.here.start} of "
                f"{self.width} on its {side} side, but its rows there have {width} columns: the "
                "layer's parallel plan is unknown to this package"
            )
        return True


def shard_of(model: nn.Module, target: Target) -> Shard | None:
    """How the layer of `target` computes: on which part of its weight; None for all of it.

    FSDP2 and ZeRO-3 gather what they split before the layer computes, though it is stored in parts
    (`stored_part`): what is left is tensor parallelism, if there is any. Raises PlacementError for
    other splits: several dimensions of tensor parallelism, interleaved slices.
    """
    reshard(model, target.layer_name)
    layer, weight = target.layer(model), target.parameter(model)
    if not is_sharded(weight):
        return None
    if is_fully_sharded(model, target.layer_name):
        dimension = _tensor_parallel_dimension(weight, target)
        return None if dimension is None else _shard_over(weight, dimension, target)
    return shard_of_layer(layer, target)


def shard_of_layer(layer: nn.Module, target: Target) -> Shard | None:
    """`shard_of` the target's layer by itself, while it computes or in a model without FSDP2."""
    weight = layer.get_parameter(target.attribute)
    if not is_sharded(weight):
        return None
    split: Any = weight
    flat_mesh(split.device_mesh, target.name)
    found = _shard_over(split, 0, target)
    if found.side is None:
        return found
    here, dimension = found.here, split.placements[0].dim % 2
    if split.to_local().shape[dimension] != here.stop - here.start or found.width == 1:
        raise PlacementError(
            f"{target.name} has {split.to_local().shape[dimension]} of {found.width} on this "
            f"process, where equal chunks would give {here.stop - here.start} of at least 2: it "
            "cannot be edited in this split"
        )
    return found


def _shard_over(weight: Any, mesh_dimension: int, target: Target) -> Shard:
    """How one dimension of its mesh splits a DTensor, into equal chunks or copies."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as SplitAlong

    mesh, placement = weight.device_mesh, weight.placements[mesh_dimension]
    group = mesh.get_group(mesh_dimension)
    if isinstance(placement, Replicate):
        return Shard(target.name, group, None, 0, slice(0, 0))
    if type(placement) is not SplitAlong:  # a _StridedShard has been a kind of Shard
        raise PlacementError(
            f"{target.name} is placed as {placement}; only weights that are split into plain "
            "slices (colwise, rowwise) or replicated can be edited: leave it out of the plan"
        )
    dimension = placement.dim % 2
    width = weight.shape[dimension]
    here = slice_of(width, group, mesh.get_local_rank(mesh_dimension))
    side: Side = "in" if (dimension == 0) == target.transposed else "out"
    return Shard(target.name, group, side, width, here)


def _tensor_parallel_dimension(weight: Any, target: Target) -> int | None:
    """The mesh dimension that splits a weight besides FSDP2; None if FSDP2 alone splits it.

    First come copies (HSDP) if any, then shards, then tensor parallelism if any. Raises
    PlacementError for others."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as SplitAlong

    mesh, placements = weight.device_mesh, weight.placements
    refuse_stages(mesh, target.name)
    copies = int(len(placements) > 1 and isinstance(placements[0], Replicate))
    shards, *others = placements[copies:]
    strided = getattr(shards, STRIDED, 1) > 1
    if (
        not hasattr(shards, "dim")
        or len(others) > 1
        or not all(type(one) in (SplitAlong, Replicate) for one in others)
        or (strided and not (others and getattr(others[0], "dim", None) == shards.dim))
    ):
        raise PlacementError(
            f"{target.name} lies on a mesh with dimensions {mesh.mesh_dim_names}, placed as "
            f"{placements}; under fully_shard (FSDP2) a mesh can be (shard) or (replicate, shard), "
            "and at most one dimension of tensor parallelism may follow"
        )
    return copies + 1 if others else None


def tensor_parallel_name(model: nn.Module) -> str | None:
    """The first parameter that is split by more than FSDP2 and its copies; None if none is."""
    from torch.distributed.tensor import Replicate

    reshard(model)
    for name, weight in model.named_parameters():
        if not is_sharded(weight):
            continue
        split: Any = weight
        copies = int(split.device_mesh.ndim > 1 and isinstance(split.placements[0], Replicate))
        of_fsdp = is_fully_sharded(model, name.rpartition(".")[0])
        if not of_fsdp or split.device_mesh.ndim > copies + 1:
            return name
    return None


def flat_mesh(mesh: DeviceMesh, of: str) -> DeviceMesh:
    """`mesh`. Raises PlacementError if it has more than one dimension, or is one of several with
    pipeline stages."""
    refuse_stages(mesh, of)
    if mesh.ndim != 1:
        raise PlacementError(
            f"{of} lies on a mesh with dimensions {mesh.mesh_dim_names}; only tensor parallelism "
            "alone can be edited: load the model with DistributedConfig(tp_plan='auto')"
        )
    return mesh


def _chunk(width: int, group: Any) -> int:
    """The width of each slice; the last ones may be narrower."""
    return -(-width // dist.get_world_size(group))


def slice_of(width: int, group: Any, rank: int) -> slice:
    """The slice of the process with this rank in `group`, as `torch.chunk` makes it."""
    chunk = _chunk(width, group)
    start = min(width, rank * chunk)
    return slice(start, min(width, start + chunk))


def _summed(part: Tensor, group: Any) -> Tensor:
    """The sum of all processes' parts, differentiable."""
    total: Tensor = _Summed.apply(part, group)  # type: ignore[no-untyped-call]
    return total


def _shared(whole: Tensor, group: Any) -> Tensor:
    """`whole`, with a gradient that is summed over the processes, each of which uses a part."""
    same: Tensor = _Shared.apply(whole, group)  # type: ignore[no-untyped-call]
    return same


class _Summed(torch.autograd.Function):
    """The sum over the group. Its gradient is the same on every process and passes unchanged."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Shared(torch.autograd.Function):
    """The identity. The gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
