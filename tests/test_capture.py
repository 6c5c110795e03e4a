"""Capturing gives, for every target, token rows whose outer product is the true gradient of its
weight, differentiates nothing below the lowest target, and leaves the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import (
    FAMILIES,
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, TargetError
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.capture import TokenRows, capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import Target, find_targets

ATTENTION = [(family, "eager") for family in FAMILIES] + [
    (family, "sdpa") for family in ("llama", "mistral", "qwen2", "gpt2")
]


def prepared(
    family: str, *, attn: str = "eager", requests: Any = REQUESTS
) -> tuple[Any, list[Target], Batch]:
    model = toy_model(family, attn=attn)
    targets = find_targets(model, toy_targets(model))
    return model, targets, make_batch(model, tokenizer_for(model), as_requests(requests))


def true_gradients(model: Any, targets: list[Target], batch: Batch) -> dict[str, Tensor]:
    """Of the sum of the requests' losses, out × in, by autograd on a copy of the model."""
    model = copy.deepcopy(model).requires_grad_(True)
    torch.autograd.backward(batch.losses(batch.logits(model)).sum())
    gradients = {}
    for target in targets:
        gradient = model.get_parameter(target.name).grad
        gradients[target.name] = gradient.T if target.transposed else gradient
    return gradients


@pytest.mark.parametrize(("family", "attn"), ATTENTION)
def test_outer_product_is_the_true_gradient_of_the_weight(family: str, attn: str) -> None:
    model, targets, batch = prepared(family, attn=attn)
    expected = true_gradients(model, targets, batch)

    rows, losses = capture(model, targets, batch)

    assert list(rows) == [target.name for target in targets]
    for name, part in rows.items():
        outer = part.delta.T @ part.x
        assert (outer - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()
        # What is not live adds nothing to it.
        assert torch.equal(part.delta[part.live].T @ part.x[part.live] == 0, outer == 0)
        assert 0 < part.live.sum() < len(part.live)
    assert losses.shape == (len(REQUESTS),)
    assert not losses.requires_grad


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_rows_of_one_request_have_the_gradient_of_that_requests_own_loss(family: str) -> None:
    model, targets, batch = prepared(family)
    rows, _ = capture(model, targets, batch)

    for number, request in enumerate(REQUESTS):
        alone = make_batch(model, tokenizer_for(model), as_requests(request))
        expected = true_gradients(model, targets, alone)
        for name, part in rows.items():
            mine = part.request == number
            apart = (part.delta[mine].T @ part.x[mine] - expected[name]).abs().max()
            assert apart <= 1e-5 * expected[name].abs().max()


def test_dead_rows_are_those_on_which_no_loss_depends() -> None:
    model, targets, batch = prepared("llama")
    rows, _ = capture(model, targets, batch)

    last_block = rows["model.layers.5.mlp.down_proj.weight"]  # nothing but the logits follows it
    assert torch.equal(last_block.live, (batch.labels != -100).flatten())
    lower = rows["model.layers.3.mlp.down_proj.weight"]
    mask = batch.inputs["attention_mask"].bool().clone()
    mask[range(len(REQUESTS)), mask.sum(1) - 1] = False  # the last token predicts nothing
    assert torch.equal(lower.live, mask.flatten())


class Watch:
    """Forward hooks on every block that say whether what left it requires a gradient."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.requires: dict[int, bool] = {}
        for number, block in enumerate(blocks):
            block.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            self.requires[number] = first.requires_grad

        return hook


def test_no_graph_is_built_below_the_lowest_target() -> None:
    model, targets, batch = prepared("llama")
    model.requires_grad_(True)  # as it comes from from_pretrained
    capture(model, targets, batch)  # the first batch of a model is also run to check the model
    watch = Watch(model.model.layers)
    above_lowest: list[bool] = []
    model.model.layers[3].mlp.act_fn.register_forward_hook(
        lambda _m, inputs, _o: above_lowest.append(inputs[0].requires_grad)
    )

    capture(model, targets, batch)

    assert watch.requires == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}
    assert above_lowest == [True]  # the lowest target is layer 3's gate_proj


def test_nothing_is_differentiated_between_two_targets_far_apart_but_what_is_needed() -> None:
    model, _, batch = prepared("llama")
    names = ["model.layers.5.mlp.down_proj.weight"]
    capture(model, find_targets(model, names), batch)  # also checks the model
    watch = Watch(model.model.layers)

    capture(model, find_targets(model, names), batch)

    assert [number for number, requires in watch.requires.items() if requires] == [5]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_gets_a_gradient_and_flags_and_modes_come_back(family: str) -> None:
    model, targets, batch = prepared(family)
    model.train()
    list(model.modules())[5].eval()  # one module apart from its parents
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
    before, flags, modes = weights(model), _flags(model), _modes(model)

    capture(model, targets, batch)

    assert all(parameter.grad is None for parameter in model.parameters())
    assert _flags(model) == flags
    assert _modes(model) == modes
    assert_unchanged(model, before)
    assert _hook_count(model) == 0


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_flags_modes_and_hooks_come_back_after_an_exception(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets, batch = prepared("llama")
    model.train()
    model.model.layers[0].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
    flags, modes = _flags(model), _modes(model)

    def stop(*_args: Any, **_kwargs: Any) -> Tensor:
        raise KeyboardInterrupt

    if where == "forward":
        monkeypatch.setattr(model.lm_head, "forward", stop)  # after every target was watched
    else:
        monkeypatch.setattr(Batch, "losses_on", stop)
    with pytest.raises(KeyboardInterrupt):
        capture(model, targets, batch)

    assert _flags(model) == flags
    assert _modes(model) == modes
    assert _hook_count(model) == 0


def test_a_gradient_that_a_weight_already_had_is_not_touched() -> None:
    model, targets, batch = prepared("llama")
    weight = model.get_parameter(targets[0].name)
    weight.grad = torch.full_like(weight, 7.0)

    capture(model, targets, batch)

    assert torch.equal(weight.grad, torch.full_like(weight, 7.0))


def test_dropout_is_off_while_capturing() -> None:
    model, targets, batch = prepared("gpt2")
    expected, losses = capture(model, targets, batch)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()

    rows, losses_in_training = capture(model, targets, batch)

    assert torch.equal(losses, losses_in_training)
    _assert_equal_rows(rows, expected)
    assert model.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@pytest.mark.parametrize(("family", "attn"), ATTENTION)
def test_capturing_inside_no_grad_and_inference_mode_gives_the_same_rows(
    context: Any, family: str, attn: str
) -> None:
    model, targets, batch = prepared(family, attn=attn)
    expected, losses = capture(model, targets, batch)

    with context():
        # The batch too is made inside, as an editor's caller would have it.
        batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
        rows, losses_inside = capture(model, targets, batch)

    assert torch.equal(losses, losses_inside)
    _assert_equal_rows(rows, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
def test_a_whole_edit_and_its_rollback_work_inside_no_grad_and_inference_mode(context: Any) -> None:
    model = toy_model("llama", attn="sdpa")
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    network = toy_network(model, tokenizer)
    before = weights(model)
    editor = MendParallel(model, tokenizer, toy_hparams(names), network=network)
    editor.edit(REQUESTS)
    expected = weights(model, names)
    editor.rollback_all()

    with context():
        editor.edit(REQUESTS)
        assert_unchanged(model, expected)
        editor.rollback_all()
        assert_unchanged(model, before)
        result = editor.edit(REQUESTS)
        editor.edit(REQUESTS[0])
    result.rollback()  # outside again, from the middle
    editor.rollback_all()
    assert_unchanged(model, before)


class WithUnused(nn.Module):
    """A model in which `spare` is never called, and what `aside` computes goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 5)
        self.spare, self.aside = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        hidden = self.first(x)
        self.aside(hidden)
        return (self.last(hidden),)


def small_batch() -> Batch:
    labels = torch.tensor([[-100, 2, -100]])
    return Batch({"x": torch.randn(1, 3, 4)}, labels, torch.tensor([0]))


@pytest.mark.parametrize(("unused", "says"), [("spare", "does not use"), ("aside", "depends on")])
def test_a_target_that_does_not_matter_is_named(unused: str, says: str) -> None:
    model = WithUnused()
    names = ["first.weight", f"{unused}.weight", "last.weight"]

    with pytest.raises(TargetError, match=f"{says} {unused}.weight"):
        capture(model, find_targets(model, names), small_batch())

    assert all(parameter.requires_grad for parameter in model.parameters())


class ChangesInPlace(nn.Module):
    """A model that changes what its layers gave it, in place: a residual stream, an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        hidden = self.first(x)
        hidden += x
        hidden.mul_(2.0)
        return (self.last(self.middle(hidden).relu_() + hidden),)


def test_a_layer_whose_output_is_changed_in_place_gives_the_true_gradient() -> None:
    torch.manual_seed(0)
    model = ChangesInPlace()
    targets = find_targets(model, ["first.weight", "middle.weight", "last.weight"])
    batch = small_batch()
    expected = true_gradients(model, targets, batch)

    rows, _ = capture(model, targets, batch)

    for name, part in rows.items():
        torch.testing.assert_close(part.delta.T @ part.x, expected[name])


class Twice(nn.Module):
    """A model that passes through one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.last(self.layer(self.layer(x).tanh()).tanh()),)


def test_a_layer_that_is_passed_twice_gives_the_rows_of_both_passes() -> None:
    torch.manual_seed(0)
    model = Twice()
    targets = find_targets(model, ["layer.weight"])
    batch = small_batch()

    rows, _ = capture(model, targets, batch)

    part = rows["layer.weight"]
    assert part.x.shape == part.delta.shape == (6, 4)
    expected = true_gradients(model, targets, batch)["layer.weight"]
    torch.testing.assert_close(part.delta.T @ part.x, expected)


def _flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def _assert_equal_rows(rows: dict[str, TokenRows], expected: dict[str, TokenRows]) -> None:
    assert list(rows) == list(expected)
    for name, part in rows.items():
        for field in ("x", "delta", "request", "live"):
            assert torch.equal(getattr(part, field), getattr(expected[name], field)), (name, field)
