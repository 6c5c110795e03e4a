"""The watched forward and backward: what reaches each target, and the gradient of what leaves it.

Runs the model once, with every weight frozen, and differentiates no further down than the lowest
target; no gradient of a weight is ever formed. Knows nothing of hypernetworks.
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
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.quantized import differentiable
from easyedit_mend_parallel.weights.sharding import shard_of
from easyedit_mend_parallel.weights.target import Target


@dataclass(frozen=True)
class TokenRows:
    """What one target saw: a row for every token of every sequence, where the target computes.

    `x` (n, in) is the layer's input and `delta` (n, out) the gradient of the requests' losses at
    its output, both in the model's dtype, and whole also where the weight is split between
    processes; `request` (n,) is the index of the request that each row belongs to; `live` (n,) is
    false for rows that carry nothing (padding, and tokens on which no loss depends), which MEND
    leaves out.
    """

    x: Tensor
    delta: Tensor
    request: Tensor
    live: Tensor


@dataclass(frozen=True)
class LayerRows:
    """What one target saw and put out in a run, a row for each token that the batch counts.

    `x` (n, in) and `y` (n, out) are in the model's dtype, where the target computes, and whole
    also where the weight is split between processes; `request` (n,) is the index of the request
    of each row, and `label_mask` (n,) is true where a label is to be predicted.
    """

    x: Tensor
    y: Tensor
    request: Tensor
    label_mask: Tensor


def capture(
    model: nn.Module, targets: Sequence[Target], batch: Batch
) -> tuple[dict[str, TokenRows], Tensor]:
    """One forward and one partial backward: ({target name: rows}, losses (R,) of the requests).

    The outer product of a target's `delta` and `x`, summed over rows, is the gradient of its
    weight under the sum of the requests' losses (Mitchell et al. 2022, section 3.1). Raises
    TargetError for a target that the forward does not reach or the losses do not depend on.
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
        passes = [(target.name, x, output) for target in targets for x, output in seen[target.name]]
        deltas = torch.autograd.grad(
            losses.sum(), [output for _, _, output in passes], allow_unused=True
        )
    shards = {target.name: shard_of(model, target) for target in targets}
    rows: dict[str, list[TokenRows]] = defaultdict(list)
    for (name, x, _), delta in zip(passes, deltas, strict=True):
        if delta is None:
            raise TargetError(
                f"no request's loss depends on {name}: it is used in the forward, but not for "
                "the predictions; take it out of inner_params"
            )
        shard = shards[name]
        if shard is not None:
            x, delta = shard.whole(x, "in"), shard.whole(delta, "out")
        rows[name].append(_token_rows(x, delta, batch.request))
    return {name: _joined(parts) for name, parts in rows.items()}, losses.detach()


@torch.no_grad()
def layer_rows(model: nn.Module, targets: Sequence[Target], batch: Batch) -> dict[str, LayerRows]:
    """One forward: what each target sees and puts out at the tokens that `batch` counts.

    Padding is left out, and so is what comes after the last token that predicts a label
    (`Batch.counted`). Whatever is attached to the model or written into it is felt. Raises
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
    found = {}
    for target in targets:
        shard, parts = shard_of(model, target), []
        for x, y in seen[target.name]:
            if shard is not None:
                x, y = shard.whole(x, "in"), shard.whole(y, "out")
            parts.append(_rows_of_mask(x.flatten(0, -2), y.flatten(0, -2), batch))
        found[target.name] = LayerRows(*(torch.cat(part) for part in zip(*parts, strict=True)))
    return found


def _rows_of_mask(x: Tensor, y: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LayerRows`, of one pass through a layer."""
    length = len(x) // len(batch.labels)
    kept = batch.token_mask(length).flatten()
    request = batch.request.repeat_interleave(length)[kept]
    label_mask = batch.label_mask(length).flatten()[kept]
    here = kept.nonzero().flatten().to(x.device)
    return x[here], y[here], request.to(x.device), label_mask.to(x.device)


@contextmanager
def watched(
    model: nn.Module, targets: Sequence[Target]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While the context lasts, keep (input, output) of every pass through each target's layer.

    Where an output does not require a gradient it is made to, so autograd's graph starts at the
    lowest target. Inputs are moved to the output's device: accelerate moves them only inside
    the forward that it wraps.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {target.name: [] for target in targets}

    def watch(name: str):  # type: ignore[no-untyped-def]
        def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()
            seen[name].append((inputs[0].detach().to(output.device), output))
            # A copy goes on, so that a model that changes its layer's output in place neither
            # changes what was kept nor meets a leaf, which autograd lets nobody change.
            return output.clone()

        return keep

    handles = [target.layer(model).register_forward_hook(watch(target.name)) for target in targets]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While the context lasts no parameter of the model requires a gradient."""
    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While the context lasts the model is in eval mode: an edit does not depend on dropout."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refuse_unreached(targets: Sequence[Target], seen: Mapping[str, Sequence[Any]]) -> None:
    unreached = [target.name for target in targets if not seen[target.name]]
    if unreached:
        raise TargetError(
            f"the forward pass does not use {', '.join(unreached)}; take it out of inner_params"
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
