"""Training's measures equal those of dense matrices, and a run without a gradient is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toys import REQUEST, tokenizer_for, toy_model, toy_network

from easyedit_mend_parallel import PluginError, TrainingError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import LowRankLayer
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host, hookimpl
from easyedit_mend_parallel.plugins.manager import editing_methods, plugin_manager
from easyedit_mend_parallel.training.diagnostics import compare, gradient_of, measure
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.weights.update import LowRankUpdate


def update_of(seed: int, rows: int = 5, grad: bool = False) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, 7, generator=generator)
    values = torch.randn(rows, 4, generator=generator).requires_grad_(grad)
    return LowRankUpdate(keys, values * 1.0, torch.zeros(rows, dtype=torch.long))


def dense(update: LowRankUpdate) -> Tensor:
    return update.values.T @ update.keys


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_norm_spread_difference_and_angle_are_those_of_the_dense_matrices(rows: int) -> None:
    one, other = update_of(1, rows), update_of(2)

    found = measure(one) | compare(one, other)

    expected = {
        "mag": dense(one).norm(),
        "std": dense(one).std(),
        "diff": (dense(one) - dense(other)).norm(),
        "cos": torch.cosine_similarity(dense(one).flatten(), dense(other).flatten(), dim=0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_an_update_of_zeros_has_numbers_too() -> None:
    zeros = LowRankUpdate(torch.zeros(3, 7), torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))

    found = measure(zeros) | compare(zeros, update_of(1))

    assert found["mag"] == found["std"] == found["cos"] == 0
    assert found["diff"] == pytest.approx(dense(update_of(1)).norm().item(), rel=1e-5)


def test_the_gradient_made_of_token_rows_is_the_gradient_of_the_weight() -> None:
    model = toy_model("llama")
    network = toy_network(model, tokenizer_for(model))
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUEST))
    rows, _ = capture(model, network.targets, batch)
    target = network.targets[0]
    weight = model.get_parameter(target.name)

    (expected,) = torch.autograd.grad(batch.losses(batch.logits(model)).sum(), weight)

    torch.testing.assert_close(dense(gradient_of(rows[target.name])), expected)


def step(watch: GradientWatch, factor: float, used: bool = True) -> None:
    """One training step whose loss depends on the update by `factor`, or not at all."""
    update = update_of(1, grad=True)
    watch.follow({"target": update})
    if used:
        (factor * update.values.sum()).backward()


def test_one_usable_gradient_in_an_interval_is_enough() -> None:
    watch = GradientWatch(interval=3)
    for factor in (0.0, 1.0, float("nan"), 0.0, 0.0, 2.0, 0.0):
        step(watch, factor)
    with pytest.raises(TrainingError):
        watch.refuse_dead()  # the last interval has one step, and its gradient is zero


@pytest.mark.parametrize(
    ("factor", "used", "says"),
    [(0.0, True, "zero"), (float("inf"), True, "not finite"), (1.0, False, "missing")],
)
def test_an_interval_without_one_is_refused_and_says_how(
    factor: float, used: bool, says: str
) -> None:
    watch = GradientWatch(interval=2)
    step(watch, 1.0)
    step(watch, 1.0)
    step(watch, factor, used)
    step(watch, factor, used)

    with pytest.raises(TrainingError, match=rf"in 2 training step\(s\) .* was {says}.*cedit"):
        step(watch, 1.0)
    step(watch, 1.0)
    watch.refuse_dead()


def test_parameters_that_never_get_a_gradient_are_named() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    for gradients, learns in (((0.0, 0.0), False), ((0.0, 2.0), True), ((2.0, 0.0), True)):
        watch = GradientWatch(interval=10)
        for gradient in gradients:
            step(watch, 1.0)
            parameter.grad = torch.full((3,), gradient)
            watch.follow_parameters([parameter])
        if learns:
            watch.refuse_dead()
        else:
            with pytest.raises(TrainingError, match="parameters had none"):
                watch.refuse_dead()


def test_the_identity_that_training_starts_from_has_a_gradient() -> None:
    layer = LowRankLayer(8, 3, "id", n_modes=2)
    x = torch.randn(5, 8)

    made = layer(x, torch.zeros(5, dtype=torch.long))
    (made * x).sum().backward()

    assert torch.equal(made, x)
    assert layer.u.grad is not None
    assert layer.u.grad.any() or layer.v.grad.any()
    assert layer.bias.grad.allclose(x.sum(0))


def test_a_row_that_is_no_number_stays_one() -> None:
    layer = LowRankLayer(4, 2, "id", n_modes=None)

    assert layer(torch.full((1, 4), float("nan")), None).isnan().all()


def test_edits_without_a_gradient_are_not_training() -> None:
    watch = GradientWatch(interval=1)
    for _ in range(3):
        watch.follow({"target": update_of(1)})
    watch.refuse_dead()


def test_a_plugin_whose_trainable_cannot_be_called_is_refused() -> None:
    class Plugin:
        @hookimpl
        def editing_method(self, host: Host) -> Any:
            return EditingMethod("BAD", print, trainable="a class")  # type: ignore[arg-type]

    plugin = Plugin()
    plugin_manager().register(plugin)
    try:
        with pytest.raises(PluginError, match=r"'a class' as trainable of 'BAD'"):
            editing_methods(Host(pytest))  # type: ignore[arg-type]
    finally:
        plugin_manager().unregister(plugin)
