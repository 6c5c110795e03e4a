"""A low-rank update acts the same whether it is added to a layer's output or written into its
weight, is written with one cast, and leaves no hook behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import assert_same_edit
from torch import Tensor, nn
from toys import (
    REQUEST,
    REQUESTS,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_model,
    toy_network,
    weights,
)
from transformers.pytorch_utils import Conv1D

from easyedit_mend_parallel import UpdateError
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.weights import update
from easyedit_mend_parallel.weights.target import Target, find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached, refuse_non_finite

ROWS, WIDE_IN, WIDE_OUT = 7, 5, 3


def some_update(
    seed: int = 0, n: int = ROWS, shape: tuple[int, int] = (WIDE_IN, WIDE_OUT)
) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, shape[0], generator=generator)
    values = torch.randn(n, shape[1], generator=generator)
    return LowRankUpdate(keys, values, torch.arange(n) % 2)


def dense(update: LowRankUpdate) -> Tensor:
    """ΔW (out × in) in float64, one pair of rows after the other."""
    total = torch.zeros(update.values.shape[1], update.keys.shape[1], dtype=torch.float64)
    for key, value in zip(update.keys.double(), update.values.double(), strict=True):
        total += torch.outer(value, key)
    return total


def proposed(family: str) -> tuple[Any, dict[str, Target], dict[str, LowRankUpdate], Batch]:
    model = toy_model(family)
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, edit_lr=1e-3)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    with torch.no_grad():
        updates = propose(model, network.targets, batch, network).updates
    return model, {target.name: target for target in network.targets}, updates, batch


def written(model: Any, targets: dict[str, Target], updates: dict[str, LowRankUpdate]) -> Any:
    """A copy of the model with the updates in its weights, added densely in float64."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, one in updates.items():
            change = dense(one)
            weight = model.get_parameter(name)
            weight.copy_(weight.double() + (change.T if targets[name].transposed else change))
    return model


def logits_of(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return batch.logits(model)


def close(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "t5"])
def test_attached_updates_give_the_logits_of_written_ones(family: str) -> None:
    model, targets, updates, batch = proposed(family)
    before, plain = weights(model), logits_of(model, batch)
    expected = logits_of(written(model, targets, updates), batch)
    assert (expected - plain).abs().max() > 1e-2 * plain.abs().max()

    with attached(model, targets, updates):
        with_update = logits_of(model, batch)

    close(with_update, expected)
    assert_unchanged(model, before)
    assert torch.equal(logits_of(model, batch), plain)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_routed_sequence_feels_the_update_of_its_request_alone(family: str) -> None:
    model, targets, updates, batch = proposed(family)
    plain = logits_of(model, batch)
    nobody = len(REQUESTS)
    route = torch.tensor([2, nobody, 0])

    with attached(model, targets, updates, route):
        with_update = logits_of(model, batch)

    for sequence, request in enumerate(route.tolist()):
        own = {
            name: LowRankUpdate(
                one.keys[one.request == request],
                one.values[one.request == request],
                one.request[one.request == request],
            )
            for name, one in updates.items()
        }
        expected = logits_of(written(model, targets, own), batch)
        close(with_update[sequence], expected[sequence])
    close(with_update[1], plain[1])
    assert (with_update[0] - plain[0]).abs().max() > 1e-2 * plain.abs().max()


def test_a_route_reaches_tokens_that_come_flat() -> None:
    one = some_update()
    x = torch.randn(2, 4, WIDE_IN)
    route = torch.tensor([1, 0])

    assert torch.allclose(one.added(x.flatten(0, 1), route), one.added(x, route).flatten(0, 1))
    for sequence, request in enumerate(route.tolist()):
        mine = one.request == request
        change = one.values[mine].T @ one.keys[mine]
        assert torch.allclose(one.added(x, route)[sequence], x[sequence] @ change.T, atol=1e-5)


@pytest.mark.parametrize("shape", [(WIDE_IN,), (4, WIDE_IN), (2, 4, WIDE_IN), (2, 3, 4, WIDE_IN)])
def test_added_is_the_input_times_the_dense_change(shape: tuple[int, ...]) -> None:
    one, x = some_update(), torch.randn(*shape)
    expected = x.double() @ dense(one).T
    assert torch.allclose(one.added(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_writing_makes_the_layer_give_what_attaching_gives(
    transposed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = Conv1D(WIDE_OUT, WIDE_IN) if transposed else nn.Linear(WIDE_IN, WIDE_OUT)
    model = nn.Sequential(layer).to(dtype).requires_grad_(False)
    (target,) = find_targets(model, ["0.weight"])
    one, x = some_update(), torch.randn(6, WIDE_IN).to(dtype)
    with attached(model, {target.name: target}, {target.name: one}):
        with_update = model(x)
    assert with_update.dtype == dtype

    one.write(layer.weight, target.transposed)

    tolerance = 1e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    assert (with_update - model(x)).abs().max() <= tolerance * with_update.abs().max()


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("limit", [1, 110, 1 << 24])
def test_a_half_precision_weight_gets_one_cast_of_the_fp32_change(
    transposed: bool, dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "WRITE_LIMIT", limit)  # in pieces of one row, of two, whole
    torch.manual_seed(0)
    one = some_update(n=200, shape=(50, 30))
    # Whole numbers have exact products and sums in fp32, so every order of summing is the same.
    one = LowRankUpdate(one.keys.mul(9).round(), one.values.mul(9).round() / 64, one.request)
    change = one.values.T @ one.keys
    weight = torch.randn(30, 50).to(dtype)
    expected = weight + change.to(dtype)
    twice = ((weight.float() + change).to(dtype)) != expected
    assert twice.any(), "one rounding of the sum would give the same: the test is empty"

    got = weight.T.contiguous() if transposed else weight.clone()
    one.write(got, transposed)

    assert same_bits(got.T.contiguous() if transposed else got, expected)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("n", [1, 12, 600])
def test_an_fp32_weight_is_off_by_at_most_one_rounding(n: int, transposed: bool) -> None:
    torch.manual_seed(0)
    one = some_update(n=n, shape=(24, 16))
    one = LowRankUpdate(one.keys, one.values * 1e-4 / n**0.5, one.request)
    weight = 9 * torch.rand(16, 24)  # as large as real weights get
    got = weight.T.contiguous() if transposed else weight.clone()

    one.write(got, transposed)

    assert_same_edit(got.T if transposed else got, weight.double() + dense(one), weight)


def test_writing_is_in_place_so_tied_weights_follow() -> None:
    first, second = nn.Linear(WIDE_IN, WIDE_OUT), nn.Linear(WIDE_IN, WIDE_OUT)
    second.weight = first.weight
    storage, before = first.weight.data_ptr(), first.weight.detach().clone()

    some_update().write(first.weight, transposed=False)

    assert second.weight.data_ptr() == first.weight.data_ptr() == storage
    assert not torch.equal(second.weight, before)
    assert first.weight.requires_grad
    assert first.weight.grad_fn is None


def test_an_update_without_rows_changes_nothing() -> None:
    for dtype in (torch.float32, torch.float16):
        weight = torch.randn(WIDE_OUT, WIDE_IN).to(dtype)
        before = weight.clone()
        some_update(n=0).write(weight, transposed=False)
        assert same_bits(weight, before)


@pytest.mark.parametrize("seed", range(3))
def test_norm_is_that_of_the_dense_change_and_no_entry_exceeds_the_bound(seed: int) -> None:
    one = some_update(seed)
    assert one.norm().item() == pytest.approx(dense(one).norm().item(), rel=1e-5)
    assert one.largest_possible() >= dense(one).abs().max() * (1 - 1e-6)


def test_norm_of_rows_that_cancel_is_zero_and_not_nan() -> None:
    one = some_update()
    cancelling = LowRankUpdate(
        torch.cat([one.keys, one.keys]),
        torch.cat([one.values, -one.values]),
        torch.cat([one.request, one.request]),
    )
    assert cancelling.norm().item() <= 1e-2 * one.norm().item()


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_are_gone_after_an_exception() -> None:
    model, targets, updates, batch = proposed("llama")
    plain = logits_of(model, batch)

    def interrupted() -> None:
        with attached(model, targets, updates):
            assert hook_count(model) == len(updates)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert hook_count(model) == 0
    assert torch.equal(logits_of(model, batch), plain)


def test_hooks_are_gone_where_a_later_target_does_not_exist() -> None:
    model, targets, updates, _ = proposed("llama")
    last = list(targets)[-1]
    targets[last] = Target("model.layers.99.mlp.up_proj.weight", 16, 24)

    with pytest.raises(AttributeError), attached(model, targets, updates):
        pass

    assert hook_count(model) == 0


def test_two_attached_updates_add_up() -> None:
    model = nn.Sequential(nn.Linear(WIDE_IN, WIDE_OUT)).requires_grad_(False)
    (target,) = find_targets(model, ["0.weight"])
    by_name, x = {target.name: target}, torch.randn(6, WIDE_IN)
    first, second = some_update(0), some_update(1)

    with (
        attached(model, by_name, {target.name: first}),
        attached(model, by_name, {target.name: second}),
    ):
        with_update = model(x)

    expected = model(x) + x @ (dense(first) + dense(second)).float().T
    assert torch.allclose(with_update, expected, atol=1e-5)


def test_the_loss_with_an_attached_update_is_differentiable_in_the_network() -> None:
    model = toy_model("llama")
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer)
    targets = {target.name: target for target in network.targets}
    batch = make_batch(model, tokenizer, as_requests(REQUEST))

    def loss() -> Tensor:
        updates = propose(model, network.targets, batch, network).updates
        with attached(model, targets, updates):
            return batch.losses(batch.logits(model)).sum()

    model.requires_grad_(False)
    gradients = torch.autograd.grad(loss(), list(network.parameters()))
    assert all(gradient.ne(0).any() for gradient in gradients)

    # Against a step of the rates to either side.
    rates, step = network.edit_lrs, 1e-4
    along = torch.ones_like(rates) * rates.detach()
    with torch.no_grad():
        rates.add_(step * along)
        above = loss()
        rates.sub_(2 * step * along)
        below = loss()
    slope = ((above - below) / (2 * step)).item()
    assert slope == pytest.approx((gradients[0] * along).sum().item(), rel=2e-2)


@pytest.mark.parametrize("where", ["keys", "values"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_updates_that_are_not_finite_are_named_and_no_others(where: str, value: float) -> None:
    bad = some_update()
    getattr(bad, where)[3, 1] = value
    refuse_non_finite({"a.weight": some_update(1)})
    refuse_non_finite({})

    with pytest.raises(UpdateError, match=r"update of b\.weight, d\.weight is not finite"):
        refuse_non_finite(
            {
                "a.weight": some_update(1),
                "b.weight": bad,
                "c.weight": some_update(2),
                "d.weight": bad,
            }
        )
