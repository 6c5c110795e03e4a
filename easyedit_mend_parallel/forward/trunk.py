"""The trunk: the frozen prefix of a model, below the lowest target, and how to leave it out.

A forward pass can resume from the hidden states that enter the lowest target's block. Its cost is
then independent of the model's depth and of the trunk's placement. Knows no model by name, and
keeps no states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import NoTrunkError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.calling import takes
from easyedit_mend_parallel.weights.engines import left_out
from easyedit_mend_parallel.weights.placement import execution_hook
from easyedit_mend_parallel.weights.target import Target


@dataclass(frozen=True)
class Resumed(Batch):
    """A batch whose forward pass starts at the lowest target's block.

    `states` (B, T, width) are the hidden states that enter that block, with zeros for padding.
    """

    trunk: Trunk
    states: Tensor

    def call(self, model: nn.Module) -> Any:
        with self.trunk.skipped(model, self.states):
            return super().call(model)


class Trunk:
    """The part of `model` below the lowest of `targets`: how to leave it out of a forward pass.

    Does not reference the model. Raises NoTrunkError for targets that are not in one list of
    blocks, and for an encoder-decoder model.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self.blocks, self.lowest = blocks_of(model, targets)
        self._in_tuple = False

    def resumed(self, model: nn.Module, batch: Batch, states: Tensor) -> Resumed:
        """`batch`, to be resumed with `states` (B, T, width) at the lowest target's block."""
        inputs = dict(batch.inputs)
        if takes(model, "inputs_embeds"):
            # No lookup of embeddings: they may be on disk, and their result would not be used. Some
            # models scale what they are given in place, so this is memory of its own.
            ids = inputs.pop("input_ids")
            inputs["inputs_embeds"] = states.new_zeros(states.shape, device=ids.device)
        return Resumed(inputs, batch.labels, batch.request, self, states)

    @contextmanager
    def caught(self, model: nn.Module, *, stop: bool = False) -> Iterator[list[Tensor]]:
        """While the context lasts, collect the states that enter the lowest target's block in each
        forward pass. With `stop` the pass ends there, with a `ForwardStopped`."""
        *below, lowest = self._blocks(model)[: self.lowest + 1]
        states: list[Tensor] = []

        def catch(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append((args[0] if args else kwargs["hidden_states"]).detach())
            if stop:
                raise ForwardStopped

        handles = [lowest.register_forward_pre_hook(catch, with_kwargs=True)]
        handles += [block.register_forward_hook(self._look) for block in below[-1:]]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def skipped(self, model: nn.Module, states: Tensor) -> Iterator[None]:
        """While the context lasts, the blocks of the trunk return their input, and the lowest
        target's block gets `states` (B, T, width)."""
        *below, lowest = self._blocks(model)[: self.lowest + 1]
        hook = execution_hook(model, f"{self.blocks}.{self.lowest}")

        def enter(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            device = given.device if hook is None else hook.execution_device
            here = states.to(device, given.dtype)
            if args:
                return (here, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": here}

        before = [block.__dict__.get("forward") for block in below]
        entering = lowest.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        with entering, left_out(below):
            try:
                for block in below:
                    block.forward = _HandingOn(self._in_tuple)
                yield
            finally:
                for block, forward in zip(below, before, strict=True):
                    if forward is None:
                        block.__dict__.pop("forward", None)
                    else:
                        block.forward = forward

    def _look(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._in_tuple = isinstance(output, tuple)

    def _blocks(self, model: nn.Module) -> list[nn.Module]:
        return [block for _, block in model.get_submodule(self.blocks).named_children()]


class ForwardStopped(Exception):
    """Ends a forward pass whose rest is not needed."""


class _HandingOn:
    """The forward of a skipped block: returns its hidden states unchanged."""

    def __init__(self, in_tuple: bool) -> None:
        self._in_tuple = in_tuple

    def __call__(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self._in_tuple else hidden_states


def blocks_of(model: nn.Module, targets: Sequence[Target]) -> tuple[str, int]:
    """The name of the list of blocks in which all targets lie, and the lowest target's block."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise NoTrunkError(
            "hidden states can be cached only for decoder-only models; in an encoder-decoder model "
            "both halves reach the targets. Set trunk_memory: 0"
        )
    found = set()
    for target in targets:
        path = target.layer_name.split(".")
        for depth in range(1, len(path)):
            name = ".".join(path[:depth])
            if isinstance(model.get_submodule(name), nn.ModuleList):
                found.add((name, int(path[depth])))
                break
    lists = sorted({name for name, _ in found})
    if len(lists) != 1 or len(found) == 0:
        raise NoTrunkError(
            f"the targets are in {', '.join(lists) or 'no list of blocks'}; hidden states can be "
            "cached only for targets in one list of blocks. Set trunk_memory: 0"
        )
    return lists[0], min(block for _, block in found)


def is_above(name: str, blocks: str, lowest: int) -> bool:
    """Whether a parameter is in the lowest target's block or in a higher one."""
    return name.startswith(blocks) and int(name.removeprefix(blocks).split(".")[0]) >= lowest


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two passes of one text agree, up to the rounding of sums in another order.

    `other` has the shape of `one` and may be on another device. The largest difference is compared
    with the largest number of `one`: 1e-3 of it for float32 and float64, 5e-2 for half precision.
    """
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2
    difference = (one.float() - other.float().to(one.device)).abs().max()
    return bool(difference <= tolerance * one.float().abs().max())
