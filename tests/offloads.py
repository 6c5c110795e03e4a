"""The ways in which a toy model can be offloaded, and what lies there as accelerate reads it.

Knows nothing of this package's stores.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import offload_state_dict
from placements import device_map
from safetensors import safe_open
from torch import Tensor
from toys import BLOCKS

KINDS = {
    "all-ram": {"ram"},
    "all-dat": {"dat"},
    "targets-ram": {"ram"},
    "targets-dat": {"dat"},
    "targets-safetensors": {"safetensors"},
    "one-of-each": {"resident", "ram", "dat", "safetensors"},
}
"""{kind: how the weights of its last four blocks are kept}. `one-of-each` uses two accelerators."""


def offloaded(model: Any, kind: str, folder: Path, device: Any) -> Any:
    """`model` offloaded in the way called `kind`, to compute on `device` (a number or a name).

    Files go to `folder`: accelerate's to `folder/offload`, a checkpoint to `folder/checkpoint`.
    """
    # accelerate knows tied weights by the addresses that they had before it dispatched them, for
    # ever: were these given to other tensors, those would be taken for the tied weight.
    vars(model)["_addresses"] = [parameter.detach() for parameter in model.parameters()]
    execution = torch.empty(0, device=device).device
    if kind == "all-ram":
        return cpu_offload(model, execution_device=execution)
    if kind == "all-dat":
        return disk_offload(model, str(folder / "offload"), execution_device=execution)
    if kind == "one-of-each":
        return _one_of_each(model, folder)
    where = "cpu" if kind == "targets-ram" else "disk"
    places = {
        module: where if _block(module) >= BLOCKS - 4 else device
        for module in device_map(model, (0,) * BLOCKS, 0)
    }
    if kind == "targets-safetensors":
        return from_checkpoint(model, folder, places)
    return dispatch_model(
        model, places, main_device=device, offload_dir=str(folder / "offload"), force_hooks=True
    )


def from_checkpoint(model: Any, folder: Path, places: dict[str, Any], **save: Any) -> Any:
    """`model` saved, and loaded again with the device map `places`."""
    model.save_pretrained(folder / "checkpoint", **save)
    return type(model).from_pretrained(
        folder / "checkpoint",
        device_map=places,
        dtype=model.dtype,
        attn_implementation="eager",
        offload_folder=str(folder / "offload"),
    )


def _one_of_each(model: Any, folder: Path) -> Any:
    """Blocks 0, 1 on accelerator 0, block 2 on 1, then one block in RAM, one as `.dat`, and one in
    a checkpoint."""
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    prefix = "transformer.h" if hasattr(model, "transformer") else "model.layers"
    places = device_map(model, (0,) * BLOCKS, 0, name=int)
    places |= {f"{prefix}.2": 1, f"{prefix}.3": "cpu", f"{prefix}.4": "disk", f"{prefix}.5": "disk"}
    weights = model.state_dict()
    index: dict[str, Any] = {}
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.startswith(f"{prefix}.5."):
                index[key] = {
                    "safetensors_file": str(checkpoint / "model.safetensors"),
                    "weight_name": key,
                    "dtype": str(weights[key].dtype).removeprefix("torch."),
                }
    dat = {key: weight for key, weight in weights.items() if key.startswith(f"{prefix}.4.")}
    offload_state_dict(folder / "offload", dat)
    for key, weight in dat.items():
        index[key] = {
            "dtype": str(weight.dtype).removeprefix("torch."),
            "shape": list(weight.shape),
        }
    return dispatch_model(
        model,
        places,
        main_device=0,
        offload_dir=str(folder / "offload"),
        offload_index=index,
        force_hooks=True,
    )


def _block(module: str) -> int:
    """The number of a block, -1 for any other module."""
    last = module.rpartition(".")[2]
    return int(last) if last.isdigit() else -1


def stored(model: Any, name: str) -> Tensor:
    """A copy of the weight that the next forward pass will use, on the CPU."""
    parameter: Tensor = model.get_parameter(name)
    if parameter.device.type != "meta":
        return parameter.detach().cpu().clone()
    hook = model.get_submodule(name.rpartition(".")[0])._hf_hook
    hooks = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    (kept,) = [h.weights_map for h in hooks if isinstance(h, AlignDevicesHook) and h.offload]
    weight: Tensor = kept["weight"]
    return weight.detach().cpu().clone()


def all_stored(model: Any, names: list[str]) -> dict[str, Tensor]:
    return {name: stored(model, name) for name in names}


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file in `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def logits_of(model: Any) -> Tensor:
    """The model's predictions for eight words, on the CPU."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(4, 12)[None]).logits
    return logits.cpu()
