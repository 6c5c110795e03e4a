"""The processes that hold one model: either all of them change it, or none does.

Knows nothing of updates. A single-process model skips communication.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.fully_sharded import refuse_engines, reshard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)


class Ranks:
    """The processes over which a model is split; `Ranks.of(model)` finds them.

    They are all processes of a mesh, also those that hold copies of others' shards (HSDP). All of
    them must make the same calls in the same order, as in the model's forward pass. A process that
    fails inside the model's own collectives does not vote.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self._mesh = mesh

    @classmethod
    def of(cls, model: nn.Module | None) -> Ranks:
        """The processes over which the parameters of `model` are split, found from its DTensors.

        Weights that FSDP2 left whole are put back into their shards for this. Raises PlacementError
        for FSDP1 and DeepSpeed ZeRO-3.
        """
        if model is None or not dist.is_available() or not dist.is_initialized():
            return cls()
        refuse_engines(model)
        reshard(model)
        meshes = [getattr(parameter, "device_mesh", None) for parameter in model.parameters()]
        split = [mesh for mesh in meshes if mesh is not None and mesh.size() > 1]
        return cls(max(split, key=lambda mesh: mesh.size(), default=None))

    @property
    def alone(self) -> bool:
        return self._mesh is None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one of them writes."""
        return self._mesh is None or _place_in(self._mesh) == 0

    @contextmanager
    def agree(self, what: str) -> Iterator[None]:
        """Leave the context on every process, or raise on every process if one failed.

        The failed process raises its own exception, which may be an interrupt. The others raise an
        UpdateError that names it and says that it could not do `what`.
        """
        if self._mesh is None:
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
        if self._mesh is None:
            return True
        numbers = self.gathered(number)
        apart = numbers.max() - numbers.min()
        return bool(apart <= tolerance * numbers.abs().max())

    def gathered(self, number: float) -> Tensor:
        """The numbers of all processes (ranks,), in order, in fp64. Waits for all of them."""
        assert self._mesh is not None
        numbers = torch.zeros(self._mesh.size(), dtype=torch.float64, device=self._mesh.device_type)
        numbers[_place_in(self._mesh)] = number
        for dimension in range(self._mesh.ndim):
            dist.all_reduce(numbers, group=self._mesh.get_group(dimension))
        return numbers


def _place_in(mesh: DeviceMesh) -> int:
    """The index of this process among all of the mesh, row by row."""
    place = 0
    for dimension, size in enumerate(mesh.shape):
        place = place * size + mesh.get_local_rank(dimension)
    return place
