"""Checkpoints of a training run: everything that resuming needs, in one file that is written whole.

The file is safetensors with a JSON header; loading it runs no code. Knows the state of optimizers,
and nothing of models or data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from easyedit_mend_parallel.errors import FileError, TrainingError
from easyedit_mend_parallel.files import read_tensors, write_tensors
from easyedit_mend_parallel.files.forms import instance_of, of_form
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork

FORMAT_VERSION = 1
NETWORK, OPTIMIZER = "network/", "optimizer/"


class _Header(TypedDict):
    format: int
    progress: dict[str, Any]
    optimizer: dict[str, Any]


@dataclass
class Progress:
    """The progress of a run: `step` is the number of finished steps. `best` is the best value so
    far of the figure for early stopping, reached at `best_step`; `configuration` identifies the
    run."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    configuration: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path, progress: Progress, network: Hypernetwork, optimizer: torch.optim.Optimizer
) -> None:
    """Write the network, the optimizer's state and `progress`. An older file stays until the new
    one is whole.

    Raises TrainingError if the file cannot be written.
    """
    tensors = {NETWORK + name: tensor for name, tensor in network.state_dict().items()}
    plain: dict[str, Any] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{number}/{name}"] = value
            else:
                plain[f"{number}/{name}"] = value
    header = {"format": FORMAT_VERSION, "progress": vars(progress), "optimizer": plain}
    with refusing_full_disks(path):
        write_tensors(path, tensors, header)


def load_checkpoint(
    path: Path, network: Hypernetwork, optimizer: torch.optim.Optimizer
) -> Progress:
    """Load a file of `save_checkpoint` into `network` and `optimizer`, on their devices.

    Raises TrainingError for a file that is missing, damaged, or of another network or optimizer;
    both are then unchanged.
    """
    try:
        tensors, header = read_tensors(path)
        about = of_form(header, _Header, "its header")
        if about["format"] != FORMAT_VERSION:
            raise ValueError(f"its format is {about['format']}, and {FORMAT_VERSION} is read")
        progress = instance_of(Progress, about["progress"], "its progress")
        state = _optimizer_state(tensors, about["optimizer"])
        _refuse_other_state(state, optimizer)
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{path} is no checkpoint to resume from: {error}") from error
    of_network = {
        name.removeprefix(NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(NETWORK)
    }
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if {name: tensor.shape for name, tensor in of_network.items()} != wanted:
        raise TrainingError(
            f"{path} is the checkpoint of another network (other targets, rank or options): give "
            "the configuration that it was made with, or another folder"
        )
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})
    network.load_state_dict(of_network)
    return progress


def _optimizer_state(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """{number of a parameter: {name: value}}, as in `optimizer.state_dict()["state"]`."""
    found: dict[int, dict[str, Any]] = {}
    of_optimizer = {
        name.removeprefix(OPTIMIZER): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(OPTIMIZER)
    }
    for name, value in {**of_optimizer, **plain}.items():
        number, slash, of_state = name.partition("/")
        if not (slash and number.isdecimal()):
            raise ValueError(f"{name!r} names no part of an optimizer's state")
        found.setdefault(int(number), {})[of_state] = value
    return found


def _refuse_other_state(
    state: Mapping[int, Mapping[str, Any]], optimizer: torch.optim.Optimizer
) -> None:
    """Raise ValueError where a state is not what a step of `optimizer` makes of its parameter:
    names, shapes, and a count of steps. torch compares none of it."""
    wanted = _state_after_a_step(optimizer)
    if wanted is None:
        return
    for number, of in state.items():
        like = wanted.get(number, {})
        if of.keys() != like.keys():
            raise ValueError(f"the state of parameter {number} is that of another optimizer")
        for name, value in of.items():
            if _form(value) != _form(like[name]) or (name == "step" and not float(value) >= 0):
                raise ValueError(f"{name} of parameter {number} does not fit the optimizer")


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]] | None:
    """The state that `optimizer` has after its first step, without values. None for one whose step
    needs values (ASGD, Adafactor)."""
    groups = []
    for group in optimizer.param_groups:
        empty = [torch.empty_like(one, device="meta").requires_grad_() for one in group["params"]]
        for one in empty:
            one.grad = torch.empty_like(one)
        groups.append({**group, "params": empty, "foreach": False, "fused": False})
    kind: Any = type(optimizer)
    stand_in = kind(groups)
    try:
        stand_in.step()
    except RuntimeError:
        return None
    found: dict[int, dict[str, Any]] = stand_in.state_dict()["state"]
    return found


def _form(value: Any) -> Any:
    """The shape and kind of a tensor, or the type of another value."""
    if not isinstance(value, Tensor):
        return type(value)
    return tuple(value.shape), value.is_floating_point()


@contextmanager
def refusing_full_disks(path: Path) -> Iterator[None]:
    """Turn an error while `path` is written into a TrainingError that says which file is left."""
    try:
        yield
    except OSError as error:
        kept = "the one before is whole" if path.exists() else "there was none before"
        reason = error.__cause__ if isinstance(error, FileError) else error
        raise TrainingError(
            f"{path} cannot be written ({reason}); {kept}. Make room, or name another folder, and "
            "go on with --resume"
        ) from error
