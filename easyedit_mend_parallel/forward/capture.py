"""Captures token rows: each target's input, and the gradient of its output, for every token.

Runs the model once with all weights frozen. The backward pass ends at the lowest target, and no
gradient of a weight is formed. Knows nothing of hypernetworks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.layout import refuse_felt_padding, refuse_other_layout
from easyedit_mend_parallel.forward.quantized import differentiable
from easyedit_mend_parallel.weights.compiled import uncompiled
from easyedit_mend_parallel.weights.fully_sharded import reshard
from easyedit_mend_parallel.weights.sharding import shard_of
from easyedit_mend_parallel.weights.target import Target


@dataclass(frozen=True)
class TokenRows:
    """The token rows of one target: one row for every token of every sequence, on its device.

    `x` (n, in) is the layer's input, and `delta` (n, out) the gradient of the requests' losses at
    its output. Both have the model's dtype, and are whole also if the weight is split between
    processes. `request` (n,) is the index of each row's request. `live` (n,) is false for rows that
    MEND leaves out: padding, and tokens on which no loss depends.
    """

    x: Tensor
    delta: Tensor
    request: Tensor
    live: Tensor


@dataclass(frozen=True)
class LayerRows:
    """Input and output of one target in a forward pass, one row for each token in the token mask.

    `x` (n, in) and `y` (n, out) have the model's dtype and are on the target's device. They are
    whole also if the weight is split between processes. `request` (n,) is the index of each row's
    request, and `label_mask` (n,) is true for tokens that predict a label. `after` (n,) is true for
    tokens of `Batch.after_mask`, if there are rows of those.
    """

    x: Tensor
    y: Tensor
    request: Tensor
    label_mask: Tensor
    after: Tensor

    def taken(self, rows: Tensor) -> LayerRows:
        """The rows that `rows` (n,), a mask or indices, chooses."""
        return LayerRows(
            self.x[rows], self.y[rows], self.request[rows], self.label_mask[rows], self.after[rows]
        )


def capture(
    model: nn.Module, targets: Sequence[Target], batch: Batch
) -> tuple[dict[str, TokenRows], Tensor]:
    """One forward and one partial backward: ({target name: rows}, losses (R,) of the requests).

    The outer product of a target's `delta` and `x`, summed over rows, is the gradient of its
    weight under the sum of the requests' losses (Mitchell et al. 2022, section 3.1). Raises
    TargetError for a target that the forward pass does not use, or that no loss depends on.
    """
    with (
        frozen(model),
        evaluating(model),
        differentiable(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        with watched(model, targets) as seen:
            losses = batch.losses_on(model)
        _refuse_unreached(targets, seen)
        inputs = {name: [x for x, _ in found] for name, found in seen.items()}
        _refuse_other_widths(model, targets, seen)
        refuse_other_layout(model, targets, inputs, batch)
        refuse_felt_padding(model, batch, losses.detach())
        if not losses.requires_grad:
            raise TargetError(
                f"no gradient reaches {', '.join(target.name for target in targets)}: the model "
                "computes these layers without gradients (reversible layers), so MEND cannot edit "
                "them; take them out of inner_params"
            )
        passes = [(target.name, x, output) for target in targets for x, output in seen[target.name]]
        with interrupts_pass():
            deltas = torch.autograd.grad(
                losses.sum(), [output for _, _, output in passes], allow_unused=True
            )
    shards = {target.name: shard_of(model, target) for target in targets}
    rows: dict[str, list[TokenRows]] = defaultdict(list)
    for (name, x, _), delta in zip(passes, deltas, strict=True):
        if delta is None:
            raise TargetError(
                f"no request's loss depends on {name}: the forward pass uses it, but not for the "
                "predictions; take it out of inner_params"
            )
        shard = shards[name]
        if shard is not None:
            x, delta = shard.whole(x, "in"), shard.whole(delta, "out")
        rows[name].append(_token_rows(x, delta, batch.request))
    return {name: _joined(parts) for name, parts in rows.items()}, losses.detach()


@torch.no_grad()
def layer_rows(
    model: nn.Module, targets: Sequence[Target], batch: Batch, *, after: bool = False
) -> dict[str, LayerRows]:
    """One forward pass: input and output of each target at the tokens of `Batch.token_mask`.

    The mask leaves out padding, and tokens after the last one that predicts a label; with `after`
    the latter are rows too. Updates that are attached to the model or written into it apply. Raises
    TargetError as `capture` does.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {target.name: [] for target in targets}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def see(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name].append((inputs[0].detach().to(output.device), output))

        return see

    with evaluating(model), ExitStack() as stack:
        for target in targets:
            layer = target.layer(model)
            stack.callback(layer.register_forward_hook(keep(target.name)).remove)
        batch.losses_on(model)
    _refuse_unreached(targets, seen)
    with evaluating(model):
        inputs = {name: [x for x, _ in passes] for name, passes in seen.items()}
        refuse_other_layout(model, targets, inputs, batch)
    found = {}
    for target in targets:
        shard, parts = shard_of(model, target), []
        for x, y in seen[target.name]:
            if shard is not None:
                x, y = shard.whole(x, "in"), shard.whole(y, "out")
            parts.append(_rows_of_mask(x.flatten(0, -2), y.flatten(0, -2), batch, after))
        found[target.name] = LayerRows(*(torch.cat(part) for part in zip(*parts, strict=True)))
    return found


def _rows_of_mask(x: Tensor, y: Tensor, batch: Batch, after: bool) -> tuple[Tensor, ...]:
    """The fields of `LayerRows`, for one pass through a layer."""
    length = len(x) // len(batch.labels)
    later = batch.after_mask(length).flatten()
    kept = batch.token_mask(length).flatten()
    if after:
        kept = kept | later
    request = batch.request.repeat_interleave(length)[kept]
    label_mask = batch.label_mask(length).flatten()[kept]
    here = kept.nonzero().flatten().to(x.device)
    masks = (one.to(x.device) for one in (request, label_mask, later[kept]))
    return x[here], y[here], *masks


@contextmanager
def watched(
    model: nn.Module, targets: Sequence[Target]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While the context lasts, store (input, output) of every pass through each target's layer.

    An output that does not require a gradient is made to require one, so autograd's graph starts at
    the lowest target. Inputs are moved to the output's device, since accelerate moves them only
    inside the forward that it wraps.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {target.name: [] for target in targets}

    def watch(name: str):  # type: ignore[no-untyped-def]
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not isinstance(output, Tensor):
                raise TargetError(
                    f"the layer of {name} gives a {type(output).__name__} and not one tensor (a "
                    "router, which chooses experts), so MEND cannot edit it: take it out of "
                    "inner_params"
                )
            if not output.requires_grad:
                output.requires_grad_()
            seen[name].append((inputs[0].detach().to(output.device), output))
            # The model gets a copy. It may change the copy in place: that would change the stored
            # output, or fail, since autograd does not allow changes of a leaf.
            return output.clone()

        return keep

    with ExitStack() as stack:
        for target in targets:
            handle = target.layer(model).register_forward_hook(watch(target.name))
            stack.callback(handle.remove)
        yield seen


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While the context lasts, no parameter of the model requires a gradient.

    accelerate makes a new parameter each time it loads an offloaded one, so they are known by their
    modules and names.
    """
    reshard(model)  # of what FSDP2 left whole, the shard is a parameter of its own
    thawed = [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    try:
        for module, name in thawed:
            module.get_parameter(name).requires_grad_(False)
        yield
    finally:
        reshard(model)
        for module, name in thawed:
            module.get_parameter(name).requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While the context lasts, the model is in eval mode, so an edit does not depend on dropout,
    and it runs uncompiled, so its hooks run."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with uncompiled():
            yield
    finally:
        for module in training:
            module.training = True


def _refuse_unreached(targets: Sequence[Target], seen: Mapping[str, Sequence[Any]]) -> None:
    unreached = [target.name for target in targets if not seen[target.name]]
    if unreached:
        raise TargetError(
            f"the forward pass does not use {', '.join(unreached)}; take it out of inner_params "
            "(an expert of a mixture is not used where no token is sent to it)"
        )


def _refuse_other_widths(
    model: nn.Module, targets: Sequence[Target], seen: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
) -> None:
    for target in targets:
        for x, y in seen[target.name]:
            widths = (x.shape[-1], y.shape[-1])
            if widths != target.shape and shard_of(model, target) is None:
                raise TargetError(
                    f"{target.name} is {target.in_features} wide, and its layer gets "
                    f"{x.shape[-1]} numbers for each token and gives {y.shape[-1]} of "
                    f"{target.out_features}: it uses the weight in parts (a grouped layer), and "
                    "MEND edits layers that use it whole: take it out of inner_params"
                )


def _token_rows(x: Tensor, delta: Tensor, request: Tensor) -> TokenRows:
    x, delta = x.flatten(0, -2), delta.flatten(0, -2)
    request = request.to(delta.device).repeat_interleave(len(delta) // len(request))
    return TokenRows(x, delta, request, live=(x != 0).any(-1) & (delta != 0).any(-1))


def _joined(parts: list[TokenRows]) -> TokenRows:
    if len(parts) == 1:
        return parts[0]
    return TokenRows(
        torch.cat([part.x for part in parts]),
        torch.cat([part.delta for part in parts]),
        torch.cat([part.request for part in parts]),
        torch.cat([part.live for part in parts]),
    )
