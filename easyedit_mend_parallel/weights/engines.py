"""The engines that split weights and gather each for its layer's forward pass: torch's FSDP2 and
DeepSpeed's ZeRO-3. Asks each of them, and refuses others. Knows nothing of how a weight is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from easyedit_mend_parallel.weights import fully_sharded, zero3


def gathers(model: nn.Module, layer_name: str) -> bool:
    """Whether an engine gathers weights of the layer, or block, for its forward pass. It then has
    to see the end of the pass."""
    of_fsdp = fully_sharded.is_fully_sharded(model, layer_name)
    return of_fsdp or zero3.gathers(model, layer_name)


def is_gathered(model: nn.Module) -> bool:
    """Whether an engine gathers weights of the model, so that each process that holds a part of it
    has to make the same forward passes."""
    return any(map(fully_sharded.is_split, model.modules())) or zero3.gathers(model, "")


def reshard(model: nn.Module, layer_name: str | None = None) -> None:
    """Put the weights that an engine left whole after a forward pass back into their parts; the
    next forward pass gathers them from there again.

    With `layer_name` only those of that layer. No communication; a model without such an engine is
    not touched.
    """
    fully_sharded.reshard(model, layer_name)
    zero3.reshard(model, layer_name)


@contextmanager
def left_out(modules: Sequence[nn.Module]) -> Iterator[None]:
    """While the context lasts, `modules` return what they are given: FSDP2 gathers no weights for
    them. ZeRO-3 does."""
    with fully_sharded.left_out(modules):
        yield


@contextmanager
def ended(model: nn.Module) -> Iterator[None]:
    """If an exception leaves the context, the engine forgets the forward pass that it ended, so
    that the next one begins anew."""
    with fully_sharded.ended(model), zero3.ended(model):
        yield


def refuse_engines(model: nn.Module) -> None:
    """Raise PlacementError for a model that FSDP1 splits, or DeepSpeed in a way that no store can
    write."""
    fully_sharded.refuse_flat_parameters(model)
    zero3.refuse(model)
