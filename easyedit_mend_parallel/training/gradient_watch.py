"""Checks during training that the loss has a gradient at some target's update, and that the
network's parameters get one.

If edits have no effect on the loss (EasyEdit's issues 342 and 525), a run would otherwise continue
to its end with zero gradients. Knows updates and parameters, and nothing of losses or trainers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.weights.update import LowRankUpdate

WHAT_TO_CHECK = (
    "Check that cedit and cloc are not both 0, that the labels are not all -100, that the targets' "
    "layers are called as modules (a compiled or fused forward bypasses their hooks), and that "
    "the model's dtype does not underflow (float16 does; bfloat16 does not)"
)


class GradientWatch:
    """The gradients at the updates of one training run, over `interval` steps at a time."""

    def __init__(self, interval: int) -> None:
        self.interval = max(interval, 1)
        self._parameters_with_gradient: Tensor | None = None
        self._learns = False
        self._begin()

    def follow(self, updates: Mapping[str, LowRankUpdate]) -> None:
        """Watch the updates of the next step, {target name: update}, before they are used.

        Waits for devices only once every `interval` steps. Raises TrainingError if the last
        `interval` steps had no usable gradient.
        """
        if self._steps >= self.interval:
            self.refuse_dead()
        if not any(update.values.requires_grad for update in updates.values()):
            return
        self._steps += 1
        for name, update in updates.items():
            if update.values.requires_grad:
                update.values.register_hook(self._seeing(name))  # type: ignore[no-untyped-call]

    def follow_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Watch the gradients that a step gave the network's parameters, until one is not zero."""
        if self._learns:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                found = (parameter.grad != 0).any()
                before = self._parameters_with_gradient
                self._parameters_with_gradient = found if before is None else before | found

    def refuse_dead(self) -> None:
        """Raise TrainingError if no target had a usable gradient since the last check, or none of
        the parameters that are followed ever had one.

        A gradient is usable if it is finite and not zero. Without a step nothing is checked.
        """
        steps, usable, seen = self._steps, self._read(self._usable), self._seen
        finite = self._read(self._finite)
        self._begin()
        if not steps:
            return
        if any(usable):
            followed = self._parameters_with_gradient
            self._learns = self._learns or followed is None or bool(followed)
            if not self._learns:
                raise TrainingError(
                    f"in {steps} training step(s) the updates had gradients and the network's "
                    "parameters had none, so nothing was learnt. Check that the network is the one "
                    "that the optimizer has, and that its dtype does not underflow"
                )
            return
        if not seen:
            what = "missing: the loss does not depend on any update"
        elif not all(finite):
            what = "not finite"
        else:
            what = "zero"
        raise TrainingError(
            f"in {steps} training step(s) the gradient at every target was {what}, so nothing was "
            f"learnt. {WHAT_TO_CHECK}"
        )

    def _begin(self) -> None:
        self._steps = 0
        self._seen = False
        self._usable: dict[str, Tensor] = {}
        self._finite: dict[str, Tensor] = {}

    def _seeing(self, name: str):  # type: ignore[no-untyped-def]
        def see(gradient: Tensor) -> None:
            self._seen = True
            finite = torch.isfinite(gradient).all()
            usable = finite & (gradient != 0).any()
            self._usable[name] = usable | self._usable.get(name, usable)
            self._finite[name] = finite & self._finite.get(name, finite)

        return see

    @staticmethod
    def _read(flags: Mapping[str, Tensor]) -> list[bool]:
        if not flags:
            return []
        home = next(iter(flags.values())).device
        read: list[bool] = torch.stack([flag.to(home) for flag in flags.values()]).tolist()
        return read
