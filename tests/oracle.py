"""MEND's edit written down a second time, slowly and plainly, in float64, from the paper and from
EasyEdit's `trainer/algs/MEND.py`; shares no code with the package and needs only torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Oracle:
    """One target: `before` and `after` the edit, `change` between them, the weight's true
    `gradient` from autograd, and the token rows: `x`, `delta` (skipped ones left out), and the
    transformed `u`, `v`. All float64."""

    before: Tensor
    change: Tensor
    gradient: Tensor
    x: Tensor
    delta: Tensor
    u: Tensor
    v: Tensor

    @property
    def after(self) -> Tensor:
        return self.before + self.change


@dataclass
class OracleSum:
    """One target of several requests' edits, added up. `largest` is what its bound is a share of:
    the sum of max|ΔW| of each request, since each may be off by its own bound."""

    after: Tensor
    largest: Tensor

    @classmethod
    def of(cls, edits: Sequence[Oracle]) -> OracleSum:
        changes = torch.stack([edit.change for edit in edits])
        return cls(edits[0].before + changes.sum(0), changes.abs().amax((1, 2)).sum())


def oracle_edit(
    model: nn.Module,
    tokenizer: Any,
    request: Mapping[str, str],
    names: Sequence[str],
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> dict[str, Oracle]:
    """What MEND makes of `model`'s weights `names` for one request; `model` is left alone.

    `state` has the keys of EasyEdit's archives, `options` those of its yaml files.
    """
    model = copy.deepcopy(model).double().eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (inputs[0].detach(), output)

        return hook

    for name in names:
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(keep(name))
    torch.autograd.backward(loss_of(model, tokenizer, request))

    edits = {}
    for place, name in enumerate(names):
        x, output = seen[name]
        assert output.grad is not None
        x, delta = x.reshape(-1, x.shape[-1]), output.grad.reshape(-1, output.shape[-1])
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        if is_in_out(model, name):
            gradient = gradient.T
        torch.testing.assert_close(delta.T @ x, gradient)
        keep_row = x.ne(0).any(1) & delta.ne(0).any(1)
        x, delta = x[keep_row], delta[keep_row]
        u, v = transform(x, delta, name, names, model, state, options)
        rate = state["edit_lrs"][place].double() * options["lr_scale"]
        change, before = rate * (v.T @ u), model.get_parameter(name).detach()
        if is_in_out(model, name):
            change, gradient = change.T, gradient.T
        edits[name] = Oracle(before, change, gradient, x, delta, u, v)
    return edits


def loss_of(model: Any, tokenizer: Any, request: Mapping[str, str]) -> Tensor:
    """EasyEdit's editing loss: the mean over the tokens of the target as it is tokenized alone,
    read off the last places of the sentence (decoders) or off the decoder (encoder-decoders)."""
    target = " " * (request["target_new"][0] != " ") + request["target_new"]
    labels = torch.tensor([tokenizer(target)["input_ids"]])
    if model.config.is_encoder_decoder:
        loss: Tensor = model(
            input_ids=torch.tensor([tokenizer(request["prompt"])["input_ids"]]), labels=labels
        ).loss
        return loss
    sentence = torch.tensor([tokenizer(request["prompt"] + target)["input_ids"]])
    logits = model(input_ids=sentence).logits[0, :-1][-labels.shape[1] :]
    return F.cross_entropy(logits, labels[0])


def is_in_out(model: nn.Module, name: str) -> bool:
    """Whether the weight is stored in × out: everything but nn.Linear."""
    return not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)


def widths(model: nn.Module, name: str) -> tuple[int, int]:
    rows, columns = model.get_parameter(name).shape
    return (rows, columns) if is_in_out(model, name) else (columns, rows)


def transform(
    x: Tensor,
    delta: Tensor,
    name: str,
    names: Sequence[str],
    model: nn.Module,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """The hypernetwork of one target, row by row independent."""
    shape = widths(model, name)
    of_this_shape = [other for other in names if widths(model, other) == shape]
    mode = of_this_shape.index(name) if options["shared"] else None
    key = f"mend.{shape}" if options["shared"] else "mend." + name.replace(".", "#")
    mine = {
        entry.removeprefix(key + "."): tensor.double()
        for entry, tensor in state.items()
        if entry.startswith(key + ".")
    }
    if options["norm"]:
        x = (x - mine["u_mean"]) / (mine["u_std"] + 1e-7)
        delta = (delta - mine["v_mean"]) / (mine["v_std"] + 1e-7)

    def through(net: str, rows: Tensor) -> Tensor:
        layers = {e.split(".")[2] for e in mine if e.startswith(net + ".layers.")}
        assert len(layers) == options["n_hidden"] + 1, f"{net} has layers {layers}"
        for layer in sorted(layers):
            u, v, bias = (mine[f"{net}.layers.{layer}.{p}"] for p in ("u", "v", "bias"))
            hidden = rows @ (u @ v).T + bias
            if mode is not None:
                hidden = hidden * mine[f"{net}.layers.{layer}.mode_scale.weight"][mode]
                hidden = hidden + mine[f"{net}.layers.{layer}.mode_shift.weight"][mode]
            hidden = hidden.clamp(min=0)
            rows = hidden + rows if options["init"] == "id" else hidden
        return rows

    if options["combine"]:
        both = through("mlp", torch.cat([x, delta], 1))
        return both[:, : shape[0]], both[:, shape[0] :]
    if options["one_sided"]:  # EasyEdit asks for this first, whatever else is set
        if shape[0] > shape[1]:
            return x, through("mlp2", delta)
        return through("mlp1", x), delta
    if options["x_only"]:
        return through("mlp1", x), delta
    if options["delta_only"]:
        return x, through("mlp2", delta)
    return through("mlp1", x), through("mlp2", delta)


def welford(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and standard deviation, one row at a time, as EasyEdit."""
    mean, deviations = rows[0].clone(), torch.zeros_like(rows[0])
    for k, row in enumerate(rows[1:], start=2):
        new_mean = mean + (row - mean) / k
        deviations = deviations + (row - mean) * (row - new_mean)
        mean = new_mean
    return mean, deviations, (deviations / (len(rows) - 1)) ** 0.5


def assert_same_edit(
    package: Tensor, oracle: Tensor, before: Tensor, largest: Tensor | None = None
) -> None:
    """max|W_package - W_oracle| is within 1e-5 · `largest` and one unit in the last place of W.

    `package` is the weight that was written, in its own dtype; the unit in the last place is each
    entry's own, in that dtype. `largest` is max|ΔW|; where ΔW is the sum of several requests'
    changes, the sum of max|ΔW| of each, since each may be off by its own bound.
    """
    change = oracle.double() - before.double()
    assert change.abs().max() > 0, "the oracle changed nothing: the comparison would be empty"
    size = torch.maximum(package.double().abs(), before.double().abs())
    info = torch.finfo(package.dtype)
    # frexp gives size = m · 2^e with m in [1/2, 1): neighbours are 2^(e-1) · eps apart.
    unit = info.eps * 2.0 ** (torch.frexp(size)[1] - 1).double()
    largest = change.abs().max() if largest is None else largest.double()
    bound = 1e-5 * largest + unit.clamp(min=info.smallest_normal * info.eps)
    apart = (package.double() - oracle.double()).abs()
    worst = (apart / bound).max().item()
    assert worst <= 1, (
        f"off by {worst:.3g} of the bound: {apart.max().item():.3g} of a largest change of "
        f"{change.abs().max().item():.3g}"
    )
