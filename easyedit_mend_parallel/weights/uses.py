"""When a target's weight is used in a forward pass: what goes into the product, and what comes out.

A weight that is a layer's own is used by that layer, and a hook sees it. One expert's slice of a
stack is used by a function that its layer calls. Knows nothing of updates.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.weights.routed import RoutedLayer, See, Use
from easyedit_mend_parallel.weights.target import Target

__all__ = ["See", "Use", "watch"]


def watch(model: nn.Module, target: Target, see: See) -> Callable[[], None]:
    """Show `see` each use of the target's weight, until what is returned is called.

    A forward pass then raises TargetError for a layer that does not give one tensor, and for
    experts whose products cannot be seen.
    """
    layer = target.layer(model)
    if target.expert is not None:
        routed = RoutedLayer.of(layer)
        routed.watch(layer, target, see, first=False)
        return lambda: routed.unwatch(layer, target, see)
    experts = _experts_around(model, target)
    followed = None if experts is None else RoutedLayer.of(experts[0])

    def shown(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise TargetError(
                f"the layer of {target.name} gives a {type(output).__name__} and not one tensor (a "
                "router, which chooses experts), so MEND cannot edit it: take it out of "
                "inner_params"
            )
        x = inputs[0]
        routed = (None, 0) if followed is None else followed.tokens_in_expert(_rows(x))
        return see(Use(x, output, *routed))

    with ExitStack() as stack:
        if experts is not None and followed is not None:
            stack.callback(followed.follow(*experts))
        stack.callback(layer.register_forward_hook(shown).remove)
        return stack.pop_all().close


def routing_layer(model: nn.Module, target: Target) -> nn.Module | None:
    """The layer that sends tokens to the expert in which the target is, or None. It may send none,
    so that the target is not used though the layer is."""
    if target.expert is not None:
        return target.layer(model)
    experts = _experts_around(model, target)
    return None if experts is None else experts[0]


def _experts_around(model: nn.Module, target: Target) -> tuple[nn.Module, nn.Module] | None:
    """The module that has a list of experts, and the expert in which the target's layer is; None
    for a layer that is in no list within a block."""
    path = target.layer_name.split(".")
    lists = [
        depth
        for depth in range(1, len(path))
        if isinstance(model.get_submodule(".".join(path[:depth])), nn.ModuleList)
    ]
    if len(lists) < 2:
        return None
    owner, expert = path[: lists[-1] - 1], path[: lists[-1] + 1]
    return model.get_submodule(".".join(owner)), model.get_submodule(".".join(expert))


def _rows(x: Any) -> int:
    return x.shape[:-1].numel() if isinstance(x, Tensor) else 0
