"""Communication of training processes: statistics, gradients and measurements.

Each process has the whole base model (on its devices), or a part of one that an engine splits, and
a copy of the hypernetwork; accelerate does the communication. A single process communicates
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from easyedit_mend_parallel.errors import TrainingError

Item = TypeVar("Item")


def accelerator_of(**options: Any) -> Accelerator:
    """accelerate's `Accelerator` of this process, made with `options`.

    On a machine without an accelerator it is told so: started by torchrun there, accelerate would
    otherwise take each process for the only one.
    """
    return Accelerator(cpu=not torch.accelerator.is_available(), **options)


class Processes:
    """The processes of one run, as accelerate started them.

    Raises TrainingError if accelerate does not know of all that were started together.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        started = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
        if started != accelerator.num_processes:
            raise TrainingError(
                f"{started} processes were started together, and accelerate knows of "
                f"{accelerator.num_processes}: each would train alone. Without an accelerator, use "
                "Accelerator(cpu=True); or start the processes with `accelerate launch`"
            )
        self.accelerator = accelerator
        self.index: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied with for its backward pass; 1 unless precision is fp16."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def samples(self, own: Tensor) -> Iterable[Tensor]:
        """Every process's `own`, in the order of the processes."""
        if self.count == 1:
            return [own]
        gathered: Tensor = self.accelerator.gather(own.unsqueeze(0))
        return list(gathered)

    def items(self, own: Sequence[Item]) -> list[Item]:
        """Every process's items, in the order of the processes."""
        found: list[Item] = gather_object(list(own)) if self.count > 1 else list(own)
        return found

    def mean(self, own: Tensor) -> Tensor:
        """The mean over the processes, the same on each."""
        if self.count == 1:
            return own
        mean: Tensor = self.accelerator.reduce(own, "mean")
        return mean

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of all parameters over the processes, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float()
                for p in parameters
            ]
        )
        mean = self.mean(flat)
        for parameter, part in zip(
            parameters, torch.split(mean, [p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype)

    def agree(self, own: str, what: str) -> None:
        """Raise TrainingError on every process if the processes differ in `what`."""
        if len(set(self.items([own]))) > 1:
            raise TrainingError(
                f"the processes of this run were given different {what}: start all of them with "
                "the same configuration and files"
            )

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()
