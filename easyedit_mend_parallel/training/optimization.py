"""Makes the optimizer of a run, and its learning rates, which depend only on the step.

Knows no losses and no data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import get_scheduler

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork


def make_optimizer(name: str, network: Hypernetwork, lr: float, lr_lr: float) -> Any:
    """torch.optim's optimizer of that name: `lr` for the networks, `lr_lr` for the edits' rates.

    Uses its fused step if it has one. Raises HparamsError for an unknown name.
    """
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
        raise HparamsError(f"opt is {name!r}, which torch.optim does not have")
    groups: list[dict[str, Any]] = [
        {"params": list(network.mend.parameters()), "lr": lr},
        {"params": [network.edit_lrs], "lr": lr_lr},
    ]
    make: Callable[..., Any] = kind
    try:
        return make(groups, fused=True)
    except (TypeError, RuntimeError):  # this optimizer, or this device, has no fused step
        return make(groups)


class Rates:
    """The learning rates of transformers' scheduler `name` over `steps` steps.

    They depend only on the step, so a resumed run has the rates of an uninterrupted one. Raises
    HparamsError for an unknown name, or a scheduler whose rates depend on more than the step.
    """

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._optimizer = optimizer
        self._full = [float(group["lr"]) for group in optimizer.param_groups]
        try:
            found = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=steps)
            self._factor: Callable[[int], float] = found.lr_lambdas[0]
        except (ValueError, AttributeError, TypeError) as error:
            raise HparamsError(
                f"lr_schedule is {name!r}; it must be one of transformers' schedulers whose "
                "rates depend only on the step, such as constant, linear or cosine"
            ) from error

    def set_for(self, step: int) -> None:
        """Set the optimizer's rates to those of step `step` (from 0)."""
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * self._factor(step)
