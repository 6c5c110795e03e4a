"""Checkpoints of a training run: everything that resuming needs, in one file that is written whole.

The file is safetensors with a JSON header; loading it runs no code. Knows the state of optimizers,
and nothing of models or data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from easyedit_mend_parallel.errors import FileError, TrainingError
from easyedit_mend_parallel.files import read_tensors, write_tensors
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork

FORMAT_VERSION = 1
NETWORK, OPTIMIZER = "network/", "optimizer/"


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
        progress = Progress(**header["progress"])
        if header["format"] != FORMAT_VERSION:
            raise ValueError(f"its format is {header['format']}, and {FORMAT_VERSION} is read")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no checkpoint to resume from: {error}") from error
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            number, of_state = name.removeprefix(OPTIMIZER).split("/")
            state.setdefault(int(number), {})[of_state] = tensor.clone()
    for name, value in header["optimizer"].items():
        number, of_state = name.split("/")
        state.setdefault(int(number), {})[of_state] = value
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
