"""Captures token rows: each target's input, and the gradient of its output, for every token.

Runs the model once with all weights frozen. The backward pass ends at the lowest target, and no
gradient of a weight is formed. Knows nothing of hypernetworks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.layout import refuse_felt_padding, refuse_other_layout
from easyedit_mend_parallel.forward.quantized import differentiable
from easyedit_mend_parallel.weights.compiled import uncompiled
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.placement import place
from easyedit_mend_parallel.weights.sharding import shard_of
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.uses import See, Use, routing_layer, watch

NO_USE = Use(torch.empty(0), torch.empty(0))


@dataclass(frozen=True)
class TokenRows:
    """The token rows of one target: one row for every token of every sequence, on its device; of an
    expert, for every token that its router sent to it, which may be none.

    `x` (n, in) is the layer's input, and `delta` (n, out) the gradient of the requests' losses at
    its output. Both have the model's dtype, and are whole also if the weight is split between
    processes. `request` (n,) is the index of each row's request. `live` (n,) is false for rows that
    MEND leaves out: padding, and tokens on which no loss depends. `token` (n,) is the number of
    each row's token in the batch, one sequence after the other.
    """

    x: Tensor
    delta: Tensor
    request: Tensor
    live: Tensor
    token: Tensor


@dataclass(frozen=True)
class LayerRows:
    """Input and output of one target in a forward pass, one row for each token in the token mask.

    `x` (n, in) and `y` (n, out) have the model's dtype and are on the target's device. They are
    whole also if the weight is split between processes. `request` (n,) is the index of each row's
    request, and `label_mask` (n,) is true for tokens that predict a label. `after` (n,) is true for
    tokens of `Batch.after_mask`, if there are rows of those. `token` (n,) is the number of each
    row's token in the batch, one sequence after the other: an expert's rows are not all tokens.
    """

    x: Tensor
    y: Tensor
    request: Tensor
    label_mask: Tensor
    after: Tensor
    token: Tensor

    @classmethod
    def cat(cls, parts: Sequence[LayerRows]) -> LayerRows:
        """The rows of one below those of the other."""
        return cls(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))

    def taken(self, rows: Tensor) -> LayerRows:
        """The rows that `rows` (n,), a mask or indices, chooses."""
        return LayerRows(*(one[rows] for one in vars(self).values()))


def capture(
    model: nn.Module, targets: Sequence[Target], batch: Batch
) -> tuple[dict[str, TokenRows], Tensor]:
    """One forward and one partial backward: ({target name: rows}, losses (R,) of the requests).

    The outer product of a target's `delta` and `x`, summed over rows, is the gradient of its
    weight under the sum of the requests' losses (Mitchell et al. 2022, section 3.1). An expert that
    no token reaches has no rows. Raises TargetError for a target that the forward pass does not
    use, or that no loss depends on.
    """
    with (
        frozen(model),
        evaluating(model),
        differentiable(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        with _seen(model, targets, as_leaf=True) as seen:
            losses = batch.losses_on(model)
        _refuse_unused(targets, seen)
        _refuse_other_widths(model, targets, seen.uses)
        refuse_other_layout(model, targets, seen.uses, batch)
        refuse_felt_padding(model, batch, losses.detach())
        if not losses.requires_grad and any(seen.uses.values()):
            raise TargetError(
                f"no gradient reaches {', '.join(target.name for target in targets)}: the model "
                "computes these layers without gradients (reversible layers), so MEND cannot edit "
                "them; take them out of inner_params"
            )
        passes = [(target.name, use) for target in targets for use in seen.uses[target.name]]
        with interrupts_pass():
            outputs = [use.y for _, use in passes]
            deltas = (
                torch.autograd.grad(losses.sum(), outputs, allow_unused=True) if outputs else ()
            )
    shards = {target.name: shard_of(model, target) for target in targets}
    rows: dict[str, list[TokenRows]] = defaultdict(list)
    for (name, use), delta in zip(passes, deltas, strict=True):
        if delta is None:
            raise TargetError(
                f"no request's loss depends on {name}: the forward pass uses it, but not for the "
                "predictions; take it out of inner_params"
            )
        x, shard = use.x, shards[name]
        if shard is not None:
            x, delta = shard.whole(x, "in"), shard.whole(delta, "out")
        rows[name].append(_token_rows(use, x, delta, batch.request))
    for target in targets:
        if not rows[target.name]:
            x, delta = _no_rows(model, target)
            rows[target.name].append(_token_rows(NO_USE, x, delta, batch.request))
    joined = {target.name: _joined(rows[target.name]) for target in targets}
    return joined, losses.detach()


@torch.no_grad()
def layer_rows(
    model: nn.Module, targets: Sequence[Target], batch: Batch, *, after: bool = False
) -> dict[str, LayerRows]:
    """One forward pass: input and output of each target at the tokens of `Batch.token_mask`.

    The mask leaves out padding, and tokens after the last one that predicts a label; with `after`
    the latter are rows too. Updates that are attached to the model or written into it apply. Raises
    TargetError as `capture` does.
    """
    with evaluating(model), _seen(model, targets, as_leaf=False) as seen:
        batch.losses_on(model)
    _refuse_unused(targets, seen)
    with evaluating(model):
        refuse_other_layout(model, targets, seen.uses, batch)
    found = {}
    for target in targets:
        shard, parts = shard_of(model, target), []
        for use in seen.uses[target.name]:
            x, y = use.x, use.y
            if shard is not None:
                x, y = shard.whole(x, "in"), shard.whole(y, "out")
            parts.append(_rows_of_mask(use, x.flatten(0, -2), y.flatten(0, -2), batch, after))
        if not parts:
            parts.append(_rows_of_mask(NO_USE, *_no_rows(model, target), batch, after))
        found[target.name] = LayerRows.cat(parts)
    return found


def _rows_of_mask(use: Use, x: Tensor, y: Tensor, batch: Batch, after: bool) -> LayerRows:
    """The rows of one use of a weight."""
    token = _token(use, len(x)).cpu()
    length = (use.of or len(x) or batch.labels.numel()) // len(batch.labels)
    later = batch.after_mask(length).flatten()[token]
    kept = batch.token_mask(length).flatten()[token]
    if after:
        kept = kept | later
    request = batch.request[token // length][kept]
    label_mask = batch.label_mask(length).flatten()[token][kept]
    here = kept.nonzero().flatten().to(x.device)
    masks = (one.to(x.device) for one in (request, label_mask, later[kept], token[kept]))
    return LayerRows(x[here], y[here], *masks)


@dataclass(frozen=True)
class _Seen:
    """What a forward pass used: {target name: each use of its weight}, and the names of targets
    whose router ran, also if it sent no token to them."""

    uses: dict[str, list[Use]]
    routed: set[str]


@contextmanager
def _seen(model: nn.Module, targets: Sequence[Target], *, as_leaf: bool) -> Iterator[_Seen]:
    """While the context lasts, store every use of each target's weight.

    With `as_leaf`, an output that does not require a gradient is made to require one, so autograd's
    graph starts at the lowest target. Inputs are moved to the output's device, since accelerate
    moves them only inside the forward that it wraps.
    """
    seen = _Seen({target.name: [] for target in targets}, set())

    def keep(name: str) -> See:
        def see(use: Use) -> Tensor | None:
            if as_leaf and not use.y.requires_grad:
                use.y.requires_grad_()
            seen.uses[name].append(replace(use, x=use.x.detach().to(use.y.device)))
            # The model gets a copy. It may change the copy in place: that would change the stored
            # output, or fail, since autograd does not allow changes of a leaf.
            return use.y.clone() if as_leaf else None

        return see

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.routed.add(name)

    with ExitStack() as stack:
        for target in targets:
            stack.callback(watch(model, target, keep(target.name)))
            router = routing_layer(model, target)
            if router is not None:
                stack.callback(router.register_forward_hook(note(target.name)).remove)
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
        try:
            reshard(model)
        finally:
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


def _refuse_unused(targets: Sequence[Target], seen: _Seen) -> None:
    names = [target.name for target in targets if not seen.uses[target.name]]
    unused = [name for name in names if name not in seen.routed]
    if unused:
        raise TargetError(
            f"the forward pass does not use {', '.join(unused)}; take it out of inner_params"
        )


def _refuse_other_widths(
    model: nn.Module, targets: Sequence[Target], seen: Mapping[str, Sequence[Use]]
) -> None:
    for target in targets:
        for x, y in ((use.x, use.y) for use in seen[target.name]):
            widths = (x.shape[-1], y.shape[-1])
            if widths != target.shape and shard_of(model, target) is None:
                raise TargetError(
                    f"{target.name} is {target.in_features} wide, and its layer gets "
                    f"{x.shape[-1]} numbers for each token and gives {y.shape[-1]} of "
                    f"{target.out_features}: it uses the weight in parts (a grouped layer), and "
                    "MEND edits layers that use it whole: take it out of inner_params"
                )


def _token_rows(use: Use, x: Tensor, delta: Tensor, request: Tensor) -> TokenRows:
    x, delta = x.flatten(0, -2), delta.flatten(0, -2)
    token = _token(use, len(x)).to(delta.device)
    length = max(1, (use.of or len(x)) // len(request))
    live = (x != 0).any(-1) & (delta != 0).any(-1)
    return TokenRows(x, delta, request.to(delta.device)[token // length], live, token)


def _token(use: Use, n: int) -> Tensor:
    """(n,): the number of the token of each of a use's n rows."""
    return torch.arange(n) if use.tokens is None else use.tokens


def _no_rows(model: nn.Module, target: Target) -> tuple[Tensor, Tensor]:
    """x (0, in) and y (0, out) of an expert that no token reaches."""
    empty = torch.empty(0, device=place(model, target).device, dtype=next(model.parameters()).dtype)
    return empty.new_empty(0, target.in_features), empty.new_empty(0, target.out_features)


def _joined(parts: list[TokenRows]) -> TokenRows:
    if len(parts) == 1:
        return parts[0]
    return TokenRows(
        torch.cat([part.x for part in parts]),
        torch.cat([part.delta for part in parts]),
        torch.cat([part.request for part in parts]),
        torch.cat([part.live for part in parts]),
        torch.cat([part.token for part in parts]),
    )
