"""The engines that split weights and gather each for its layer's forward pass: torch's FSDP2 and
DeepSpeed's ZeRO-3. Asks each of them, and refuses others. Knows nothing of how a weight is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.weights import fully_sharded, zero3


def gathers(model: nn.Module, layer_name: str) -> bool:
    """Whether an engine gathers weights of the layer, or block, for its forward pass. It then has
    to see the end of the pass."""
    of_fsdp = fully_sharded.is_fully_sharded(model, layer_name)
    return of_fsdp or zero3.gathers(model, layer_name)


def reshard(model: nn.Module, layer_name: str | None = None) -> None:
    """Put the weights that an engine left whole after a forward pass back into their parts; the
    next forward pass gathers them from there again.

    With `layer_name` only those of that layer. No communication; a model without such an engine is
    not touched.
    """
    fully_sharded.reshard(model, layer_name)
    zero3.reshard(model, layer_name)


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


def refuse_training(model: nn.Module) -> None:
    """Raise TrainingError for a base model whose weights an engine gathers: a training process has
    texts of its own and ends some forward passes early, and an engine needs the same passes in
    every process."""
    by_engine = {
        "sharded by fully_shard (FSDP2)": any(map(fully_sharded.is_split, model.modules())),
        "partitioned by DeepSpeed ZeRO-3": zero3.gathers(model, ""),
    }
    for how, found in by_engine.items():
        if found:
            raise TrainingError(
                f"the base model is {how}, over which no hypernetwork can be trained yet, though "
                "it can be edited: load it with a device_map, or whole in each process"
            )
