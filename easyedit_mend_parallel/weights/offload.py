"""Finds an offloaded weight while its layer does not compute: a mapping of accelerate's and a key.

Knows how accelerate stores weights in RAM and on disk, and which of them this package overlays.
Writes no weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.overlay import Overlays
from easyedit_mend_parallel.weights.partitions import is_partitioned
from easyedit_mend_parallel.weights.target import parameter_of

RAM, DAT, SAFETENSORS, UNKNOWN = "ram", "dat", "safetensors", "unknown"
"""How an offloaded weight is stored: a tensor in a dictionary, a `.dat` file that accelerate wrote,
an entry of a safetensors file (the user's checkpoint), or a mapping that only a plugin knows."""


@dataclass(frozen=True)
class Holder:
    """`container[key]` is the weight; `kept` is one of RAM, DAT, SAFETENSORS and UNKNOWN."""

    container: Any
    key: str
    kept: str

    @property
    def in_memory(self) -> Tensor:
        """The tensor of a weight in RAM itself, not a copy."""
        container: Any = self.container
        if isinstance(container, OffloadedWeightsLoader):
            container = container.state_dict
        tensor: Tensor = container[self.key]
        return tensor.detach()


def find_holder(model: nn.Module, name: str) -> Holder | None:
    """What holds the parameter `name`; None if no hook of accelerate offloads it.

    The innermost hook that offloads it is used. With `preload_module_classes`, this is a hook of a
    module around the parameter's layer.
    """
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        for hook in hooks_of(model.get_submodule(".".join(path[:depth]))):
            if not isinstance(hook, AlignDevicesHook) or not hook.offload:
                continue
            container, key = hook.weights_map, ".".join(path[depth:])
            while isinstance(container, PrefixedDataset):
                container, key = container.dataset, container.prefix + key
            kept = _kept(container, key)
            if kept is not None:
                return Holder(container, key, kept)
    return None


def kept_weight(model: nn.Module, name: str) -> Tensor | None:
    """The parameter `name` as the next forward pass will use it, however it is stored; of the name
    of one expert's weight, its slice.

    Do not write to it. A weight on disk is read from its file, or from this package's overlay. The
    result is None if the parameter has no values and no hook of accelerate holds any. A weight that
    an engine left whole is put back into its parts; the result says how it is split (`whole_tensor`
    gathers it): a DTensor, or the parameter itself if ZeRO-3 partitions it.
    """
    name, expert = parameter_of(name)
    reshard(model, name.rpartition(".")[0])
    weight: Tensor = model.get_parameter(name)
    if weight.device.type == "meta":
        holder = find_holder(model, name)
        if holder is None:
            return None
        weight = holder.container[holder.key]
    if is_partitioned(weight):
        return weight
    weight = weight.detach()
    return weight if expert is None else weight[expert]


def _kept(container: Any, key: str) -> str | None:
    """How `container` stores `key`, found without reading it; None if it does not."""
    if isinstance(container, OffloadedWeightsLoader):
        overlays = Overlays.of(container)
        if key in container.state_dict and key not in overlays.own:
            return RAM
        if key not in container.index:
            return None
        entry = overlays.own_entry(container, key)
        return DAT if entry.get("safetensors_file") is None else SAFETENSORS
    if isinstance(container, dict):
        return RAM if isinstance(container.get(key), Tensor) else None
    return UNKNOWN if container is not None and key in list(container) else None


def loaders_of(model: nn.Module) -> list[OffloadedWeightsLoader]:
    """Every loader from which a hook in `model` reads weights, without repeats."""
    found: dict[int, OffloadedWeightsLoader] = {}
    for module in model.modules():
        for hook in hooks_of(module):
            container = getattr(hook, "weights_map", None)
            while isinstance(container, PrefixedDataset):
                container = container.dataset
            if isinstance(container, OffloadedWeightsLoader):
                found[id(container)] = container
    return list(found.values())


def refuse_lost_files(model: nn.Module) -> None:
    """Raise PlacementError if folders or checkpoint files that `model` reads are gone.

    Checked before a forward pass, which would otherwise fail in the middle of the model.
    """
    for loader in loaders_of(model):
        entries = Overlays.of(loader).own | dict(loader.index)
        files = {entry.get("safetensors_file") for entry in entries.values()}
        needed = {loader.save_folder if file is None else file for file in files}
        lost = [str(path) for path in needed if path is not None and not Path(path).exists()]
        if lost:
            raise PlacementError(
                f"the model's offloaded weights are in {', '.join(sorted(lost))}, which is gone: "
                "put it back, or load the model again"
            )


def tied_names(model: nn.Module, name: str) -> set[str]:
    """The parameters that transformers declares to be tied to `name`, including `name`.

    After offloading, each has its own placeholder, so only this declaration shows the tie.
    """
    declared: Any = getattr(model, "all_tied_weights_keys", {})
    pairs, group = list(declared.items()), {name}
    for _ in pairs:
        for pair in pairs:
            if group & set(pair):
                group.update(pair)
    if len(group) > 1:  # removes patterns, and names that this model does not have
        group &= {known for known, _ in model.named_parameters(remove_duplicate=False)}
    return group


@contextmanager
def sent_back(model: nn.Module) -> Iterator[None]:
    """If an exception leaves the context, the weights that accelerate loaded for a forward pass are
    offloaded again."""
    try:
        yield
    except BaseException:
        send_back(model.modules())
        raise


def send_back(modules: Iterable[nn.Module]) -> None:
    """Offload what a broken forward pass left loaded in these modules.

    accelerate does so only after a forward that returns. What was loaded is a copy.
    """
    for module in modules:
        for hook in hooks_of(module):
            if isinstance(hook, AlignDevicesHook) and hook.offload:
                held = module.parameters(recurse=hook.place_submodules)
                if any(parameter.device.type != "meta" for parameter in held):
                    hook.post_forward(module, None)


def hooks_of(module: nn.Module) -> Iterator[ModelHook]:
    """The single hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    if isinstance(hook, SequentialHook):
        yield from hook.hooks
    elif hook is not None:
        yield hook
