"""The processes that hold one model: either all of them change it, or none does.

Knows nothing of updates. A single-process model skips communication.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.engines import refuse_engines, reshard
from easyedit_mend_parallel.weights.partitions import is_partitioned

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """The processes of one model: `size` of them, this one at `place`.

    A sum over each of `groups`, in order, is one over all of them. They communicate on devices of
    the type `device`.
    """

    groups: tuple[Any, ...]
    size: int
    place: int
    device: str

    @classmethod
    def of(cls, parameter: Any) -> Processes:
        """Those over which a parameter is split."""
        if is_partitioned(parameter):
            group = parameter.ds_process_group
            place = dist.get_rank(group)
            return cls((group,), _width(parameter), place, parameter.device.type)
        mesh: DeviceMesh = parameter.device_mesh
        groups = tuple(mesh.get_group(dimension) for dimension in range(mesh.ndim))
        return cls(groups, mesh.size(), _place_in(mesh), mesh.device_type)


class Ranks:
    """The processes over which a model is split; `Ranks.of(model)` finds them.

    They are all processes of a mesh, also those that hold copies of others' shards (HSDP), or of
    ZeRO-3's group. All of them must make the same calls in the same order, as in the model's
    forward pass. A process that fails inside the model's own collectives does not vote.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self._all = processes

    @classmethod
    def of(cls, model: nn.Module | None) -> Ranks:
        """The processes over which the parameters of `model` are split, found from its DTensors, or
        from what ZeRO-3 partitions.

        Weights that an engine left whole are put back into their parts for this. Raises
        PlacementError for engines that cannot be edited (`refuse_engines`).
        """
        if model is None or not dist.is_available() or not dist.is_initialized():
            return cls()
        refuse_engines(model)
        reshard(model)
        widest = max(model.parameters(), key=_width, default=None)
        return cls(None if _width(widest) == 1 else Processes.of(widest))

    @property
    def alone(self) -> bool:
        return self._all is None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one of them writes."""
        return self._all is None or self._all.place == 0

    @contextmanager
    def agree(self, what: str) -> Iterator[None]:
        """Leave the context on every process, or raise on every process if one failed.

        The failed process raises its own exception, which may be an interrupt. The others raise an
        UpdateError that names it and says that it could not do `what`.
        """
        if self._all is None:
            yield
        else:
            yield from self._voted(what)

    def _voted(self, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            try:
                self.gathered(1.0)
            except RuntimeError:  # the exception of this process matters more
                logger.warning("the other processes cannot be told that this one failed")
            raise
        try:
            verdicts = self.gathered(0.0)
        except RuntimeError as error:
            raise UpdateError(
                f"the other processes no longer answer, so it is not known whether they could "
                f"{what}; nothing was changed here. Look at their output for the reason"
            ) from error
        failed = [str(rank) for rank, verdict in enumerate(verdicts.tolist()) if verdict]
        if failed:
            raise UpdateError(
                f"rank {', '.join(failed)} could not {what}, so no rank was changed; the "
                "exception raised there says why"
            )

    def same(self, number: float, tolerance: float = 0.0) -> bool:
        """Whether every process passed the same number, up to a relative `tolerance`.

        All processes get the same result.
        """
        if self._all is None:
            return True
        numbers = self.gathered(number)
        apart = numbers.max() - numbers.min()
        return bool(apart <= tolerance * numbers.abs().max())

    def any(self, mine: bool) -> bool:
        """Whether it is so on any process; the same on all of them. Waits for all."""
        return bool(self.gathered(float(mine)).any())

    def gathered(self, number: float) -> Tensor:
        """The numbers of all processes (ranks,), in order, in fp64. Waits for all of them."""
        if self._all is None:
            return torch.tensor([number], dtype=torch.float64)
        numbers = torch.zeros(self._all.size, dtype=torch.float64, device=self._all.device)
        numbers[self._all.place] = number
        for group in self._all.groups:
            dist.all_reduce(numbers, group=group)
        return numbers


def _width(parameter: Any) -> int:
    """The number of processes over which a parameter is split; 1 for one that is not."""
    if is_partitioned(parameter):
        return dist.get_world_size(parameter.ds_process_group)
    mesh: DeviceMesh | None = getattr(parameter, "device_mesh", None)
    return 1 if mesh is None else mesh.size()


def _place_in(mesh: DeviceMesh) -> int:
    """The index of this process among all of the mesh, row by row."""
    place = 0
    for dimension, size in enumerate(mesh.shape):
        place = place * size + mesh.get_local_rank(dimension)
    return place
