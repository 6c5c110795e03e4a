"""How a target's weight is split between processes, and how its token rows are gathered.

Reads this from the weight (a DTensor), not from the plan that loaded it. An edit sends only token
rows between processes; weights are gathered to be saved or checksummed. Knows nothing of
hypernetworks or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.target import Target

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Side = Literal["in", "out"]


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

    def columns(self, rows: Tensor, side: Side) -> Tensor:
        """The columns of whole `rows` (n, width of `side`) in this process's slice."""
        return rows[:, self.here] if side == self.side else rows

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
    """How the weight of `target` is currently split in `model`; None if it is not.

    Raises PlacementError for anything but plain tensor parallelism: FSDP, several mesh dimensions,
    interleaved slices.
    """
    layer = target.layer(model)
    if not is_distributed(layer.get_parameter("weight")):
        return None
    path = target.layer_name.split(".")
    modules = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1))
    if any(hasattr(module, "reshard") for module in modules):
        raise PlacementError(
            f"{target.name} is sharded by FSDP, which cannot be edited: load the model with a "
            "tensor-parallel plan (DistributedConfig(tp_plan='auto')) or a device_map instead"
        )
    return shard_of_layer(layer, target)


def shard_of_layer(layer: nn.Module, target: Target) -> Shard | None:
    """`shard_of` the target's layer by itself, in a model that is not sharded by FSDP."""
    weight = layer.get_parameter("weight")
    if not is_distributed(weight):
        return None
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as SplitAlong

    assert isinstance(weight, DTensor)
    mesh = flat_mesh(weight.device_mesh, target.name)
    group = mesh.get_group()
    placement = weight.placements[0]
    if isinstance(placement, Replicate):
        return Shard(target.name, group, None, 0, slice(0, 0))
    if type(placement) is not SplitAlong:  # a _StridedShard has been a kind of Shard
        raise PlacementError(
            f"{target.name} is placed as {placement}; only weights that are split into plain "
            "slices (colwise, rowwise) or replicated can be edited: leave it out of the plan"
        )
    dimension = placement.dim % 2
    width = weight.shape[dimension]
    chunk = _chunk(width, group)
    start = min(width, mesh.get_local_rank() * chunk)
    here = slice(start, min(width, start + chunk))
    if weight.to_local().shape[dimension] != here.stop - here.start or width == 1:
        raise PlacementError(
            f"{target.name} has {weight.to_local().shape[dimension]} of {width} on this process, "
            f"where equal chunks would give {here.stop - here.start} of at least 2: it cannot be "
            "edited in this split"
        )
    side: Side = "in" if (dimension == 0) == target.transposed else "out"
    return Shard(target.name, group, side, width, here)


def whole_logits(model: nn.Module, logits: Tensor) -> Tensor:
    """`logits` (B, T, vocabulary) with all columns, also if the model leaves them split.

    Raises PlacementError if each process has some columns and it is not known which.
    """
    if is_distributed(logits):
        return whole_tensor(logits)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if weight is not None and is_distributed(weight) and logits.shape[-1] < weight.shape[0]:
        raise PlacementError(
            f"the model's logits have {logits.shape[-1]} of {weight.shape[0]} columns on this "
            "process: give its output layer the style colwise_gather_output in the plan"
        )
    return logits


def whole_tensor(part: Tensor, like: Tensor | None = None) -> Tensor:
    """The whole tensor of `part`, the same on every process. Do not write to it.

    `part` is a DTensor, or this process's share of a tensor that is split like `like`. A tensor
    that is not split is returned unchanged. Every process must call this.
    """
    split: Any = part if like is None else like
    if not is_distributed(split):
        return part
    from torch.distributed.tensor import DTensor

    if not isinstance(part, DTensor):
        part = DTensor.from_local(
            part, split.device_mesh, split.placements, shape=split.shape, stride=split.stride()
        )
    whole: Tensor = part.full_tensor()
    return whole


def is_distributed(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor. Does not import DTensor (half a second)."""
    return hasattr(tensor, "to_local")


def flat_mesh(mesh: DeviceMesh, of: str) -> DeviceMesh:
    """`mesh`. Raises PlacementError if it has more than one dimension."""
    if mesh.ndim != 1:
        raise PlacementError(
            f"{of} lies on a mesh with dimensions {mesh.mesh_dim_names}; only tensor parallelism "
            "alone can be edited: load the model with DistributedConfig(tp_plan='auto')"
        )
    return mesh


def _chunk(width: int, group: Any) -> int:
    """The width of each slice; the last ones may be narrower."""
    return -(-width // dist.get_world_size(group))


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
