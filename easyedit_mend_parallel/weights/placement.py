"""Finds where a target computes and where its weight is stored, on the live model.

Reads three sources: `hf_device_map`, accelerate's hook with what it holds, and the weight itself.
Knows nothing of updates; the stores write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn
from transformers.pytorch_utils import Conv1D

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.offload import (
    DAT,
    RAM,
    SAFETENSORS,
    UNKNOWN,
    Holder,
    find_holder,
    hooks_of,
    tied_names,
)
from easyedit_mend_parallel.weights.target import Target, highest, shared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESIDENT = "resident"
OFFLOAD_PLACES: dict[str, tuple[str, ...]] = {
    "cpu": (RAM, UNKNOWN),
    "disk": (DAT, SAFETENSORS, UNKNOWN),
}
"""{a device map's entry for an offloaded module: how its weights can be stored}"""


@dataclass(frozen=True)
class Placement:
    """Where a target is: `device` is where its layer computes, and where its token rows are.

    `kept` is `"resident"` if the weight stays on that device. Otherwise the weight is offloaded and
    only copied there for a forward pass. It is stored in `"ram"`, in a `"dat"` file, in a
    `"safetensors"` file (the user's checkpoint), or in an `"unknown"` way that a plugin may know.
    """

    device: torch.device
    kept: str = RESIDENT


def place(model: nn.Module, target: Target) -> Placement:
    """The current placement of `target` in `model`.

    Raises PlacementError if the device map has no entry for it, or if the map, the hook and the
    weight contradict each other; the message quotes all three.
    """
    weight = target.parameter(model)
    mapped = mapped_place(model, target.parameter_name)
    hook = execution_hook(model, target.layer_name)
    offloaded = weight.device.type == "meta"
    holder = find_holder(model, target.parameter_name) if offloaded else None

    def contradiction() -> PlacementError:
        return PlacementError(
            f"{target.name}: hf_device_map says {_say(mapped)}, accelerate's hook says "
            f"{_say_hook(hook, holder)}, the weight itself is on {weight.device}. Dispatch the "
            "model again (accelerate.dispatch_model), or delete model.hf_device_map if it was "
            "never dispatched"
        )

    if offloaded:
        if hook is None or holder is None:
            raise contradiction()
        if mapped is not None and holder.kept not in OFFLOAD_PLACES.get(str(mapped), ()):
            raise contradiction()
        return Placement(as_device(hook.execution_device), holder.kept)
    if mapped is not None and (mapped == "disk" or not _same(as_device(mapped), weight.device)):
        raise contradiction()
    if hook is not None and (
        hook.offload or not _same(as_device(hook.execution_device), weight.device)
    ):
        raise contradiction()
    return Placement(weight.device)


def refuse_split_tie(model: nn.Module, target: Target, placement: Placement) -> None:
    """Raise PlacementError if a weight that is tied to the target's is stored in another way.

    accelerate then has two tensors for one weight, and loads the first that it finds.
    """
    for name in sorted(tied_names(model, target.name) - {target.name}):
        kept = _kept(model, name)
        if kept != placement.kept:
            raise PlacementError(
                f"{target.name} ({placement.kept}) and {name} ({kept}) are tied, one weight under "
                "two names, but are stored in two places: an edit of one would not change the "
                "other. Give both modules one place in device_map and load the model again"
            )


def refuse_shared(model: nn.Module, target: Target) -> None:
    """Raise TargetError for a weight that is declared to be tied to another linear layer's.

    `find_targets` finds the ties of weights that have values; this finds those of offloaded ones.
    """
    for name in sorted(tied_names(model, target.name) - {target.name}):
        other = model.get_submodule(name.rpartition(".")[0])
        if isinstance(other, (nn.Linear, Conv1D)) and other is not target.layer(model):
            raise shared(target.name, target.layer_name, name.rpartition(".")[0])


def network_home(
    model: nn.Module, targets: Sequence[Target], wish: int | str | None
) -> torch.device:
    """Device of the hypernetwork of `targets`: `wish`, or the device of the highest target."""
    return place(model, highest(model, targets)).device if wish is None else as_device(wish)


def input_device(model: PreTrainedModel) -> torch.device:
    """The device for token ids: the one on which the input embeddings are looked up."""
    embeddings = model.get_input_embeddings()
    weight: torch.Tensor = next(embeddings.parameters())
    if weight.device.type != "meta":
        return weight.device
    name = next((name for name, module in model.named_modules() if module is embeddings), "")
    hook = execution_hook(model, name)
    if hook is None:
        raise PlacementError(
            f"the input embeddings ({name or type(model).__name__}) have no values and no "
            "accelerate hook that loads them; load the model with from_pretrained"
        )
    return as_device(hook.execution_device)


def mapped_place(model: nn.Module, parameter: str) -> int | str | torch.device | None:
    """The entry of `model.hf_device_map` for `parameter`, by its longest matching prefix.

    None if the model was never dispatched. Raises PlacementError if the map has no entry for the
    parameter.
    """
    device_map: Mapping[str, Any] | None = getattr(model, "hf_device_map", None)
    if device_map is None:
        return None
    prefixes = [
        prefix
        for prefix in device_map
        if not prefix or parameter == prefix or parameter.startswith(prefix + ".")
    ]
    if not prefixes:
        raise PlacementError(
            f"hf_device_map has no entry for {parameter}; its entries are "
            f"{', '.join(device_map)}: add one for its block and load the model again"
        )
    entry: int | str | torch.device = device_map[max(prefixes, key=len)]
    return entry


def execution_hook(model: nn.Module, module_name: str) -> AlignDevicesHook | None:
    """The innermost accelerate hook, of a module or its parents, that sets where it computes."""
    path = module_name.split(".") if module_name else []
    for depth in range(len(path), -1, -1):
        for hook in hooks_of(model.get_submodule(".".join(path[:depth]))):
            if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None:
                return hook
    return None


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate's hooks or a device map determine where the model is."""
    return hasattr(model, "hf_device_map") or any(
        isinstance(hook, AlignDevicesHook)
        for module in model.modules()
        for hook in hooks_of(module)
    )


def as_device(place: int | str | torch.device) -> torch.device:
    """The device of a device map's entry; a number is the index of an accelerator."""
    if isinstance(place, str) and place.isdigit():
        place = int(place)
    if isinstance(place, int):
        accelerator = torch.accelerator.current_accelerator()
        return torch.device(accelerator.type if accelerator else "cuda", place)
    try:
        return torch.device(place)
    except RuntimeError as error:
        raise PlacementError(
            f"{place!r} is not a device that torch knows: write 'cpu', a number, or a name such "
            "as 'cuda:1'"
        ) from error


def _kept(model: nn.Module, name: str) -> str:
    """`Placement.kept` for any parameter."""
    if model.get_parameter(name).device.type != "meta":
        return RESIDENT
    holder = find_holder(model, name)
    return UNKNOWN if holder is None else holder.kept


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean one device; an accelerator without an index is the first."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def _say(mapped: int | str | torch.device | None) -> str:
    return "nothing (there is none)" if mapped is None else repr(mapped)


def _say_hook(hook: AlignDevicesHook | None, holder: Holder | None) -> str:
    if hook is None:
        return "nothing (there is none)"
    if not hook.offload:
        return f"{hook.execution_device!r}"
    kept = "" if holder is None else f", kept as {holder.kept}"
    return f"{hook.execution_device!r} (offloaded){kept}"
