"""Layers that bitsandbytes quantized to 8 and 4 bits are edited at their outputs, on a CPU too,
where a gradient has to find its way through weights that were packed for inference."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from quantized import KINDS, quantized_model, wide_model
from torch import Tensor, nn
from toys import (
    OBSERVED,
    REQUEST,
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, UpdateError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.quantized import differentiable
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.placement import place
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.stores.output import edited_outputs
from easyedit_mend_parallel.weights.target import Target, find_target, find_targets
from easyedit_mend_parallel.weights.update import attached

CPU = torch.device("cpu")


@cache
def network() -> Hypernetwork:
    plain = wide_model()
    return toy_network(plain, tokenizer_for(plain), edit_lr=1e-3)


def editor_of(model: Any, apply: str = "output") -> MendParallel:
    hparams = toy_hparams(toy_targets(model), apply=apply)
    return MendParallel(model, tokenizer_for(model), hparams, network=network())


def logits(model: Any, requests: Any = REQUESTS) -> Tensor:
    with torch.no_grad():
        return make_batch(model, tokenizer_for(model), as_requests(requests)).logits(model)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return quantized_model(request.param, tmp_path)


def test_widths_come_from_the_layer_and_not_from_what_is_packed(model: Any) -> None:
    name = "model.layers.3.mlp.down_proj.weight"
    assert (
        model.get_parameter(name).shape == (64, 128)
        or model.get_parameter(name).dtype == torch.uint8
    )
    target = find_target(model, name)
    assert target == Target(name, 128, 64)
    assert place(model, target).device == CPU
    assert place(model, target).kept == "resident"


def test_an_edit_of_the_outputs_is_the_attached_update_and_comes_off(model: Any) -> None:
    editor = editor_of(model)
    plain, before = logits(model), weights(model)

    result = editor.edit(REQUESTS, losses_after=True)

    edited = logits(model)
    assert (edited - plain).abs().max() > 1e-2 * plain.abs().max()
    assert result.losses_after != result.losses
    assert set(result.entry.before()) == {target.name for target in editor.targets}
    result.rollback()
    assert torch.equal(logits(model), plain)
    assert_unchanged(model, before)
    with attached(model, {target.name: target for target in editor.targets}, result.updates):
        assert torch.equal(logits(model), edited)


def test_edits_between_forwards_add_up_and_come_off_in_any_order(model: Any) -> None:
    editor, states = editor_of(model), [logits(model)]
    results = []
    for request in REQUESTS:
        results.append(editor.edit(request))
        states.append(logits(model))
    assert set(edited_outputs(model).values()) == {3}
    results[2].rollback()
    assert torch.equal(logits(model), states[2])
    results[0].rollback()
    assert not any(torch.equal(logits(model), state) for state in states)
    results[1].rollback()
    assert torch.equal(logits(model), states[0])


def test_a_quantized_weight_is_not_written_and_the_error_names_the_option(model: Any) -> None:
    before = weights(model)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UpdateError, match=r"layers\.1\.mlp.*quantized.*`apply: output`"):
        editor_of(model, "weight")
    assert not calls
    assert_unchanged(model, before)


def test_a_weight_in_float8_is_not_written_either() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(model[0].weight.to(torch.float8_e4m3fn), requires_grad=False)
    target = find_target(model, "0.weight")
    with pytest.raises(UpdateError, match=r"float8.*`apply: output`"):
        store_for(model, target)
    store_for(model, target, "output")


@pytest.mark.parametrize("kind", ["8-bit", "4-bit-nested"])
def test_a_quantized_model_in_bfloat16_keeps_its_dtype(kind: str, tmp_path: Path) -> None:
    model = quantized_model(kind, tmp_path, torch.bfloat16)
    plain = logits(model)
    result = editor_of(model).edit(REQUESTS)
    assert logits(model).dtype == torch.bfloat16
    assert not torch.equal(logits(model), plain)
    result.rollback()
    assert torch.equal(logits(model), plain)


def test_a_4_bit_model_is_edited_as_the_model_of_the_weights_that_it_stands_for(
    tmp_path: Path,
) -> None:
    model, meant = quantized_model("4-bit", tmp_path), wide_model()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight: Any = module.weight
                dense = dequantize_4bit(weight.data, weight.quant_state)
                meant.get_parameter(f"{name}.weight").copy_(dense)
    logits(model)  # packs the weights where this CPU has AVX512-BF16: bf16 from here on

    result, expected = editor_of(model).edit(REQUESTS), editor_of(meant, "weight").edit(REQUESTS)

    assert result.losses == pytest.approx(expected.losses, rel=2e-2)
    for name, update in expected.updates.items():
        ours = result.updates[name].values.T @ result.updates[name].keys
        theirs = update.values.T @ update.keys
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert (logits(model) - logits(meant)).norm() < 0.02 * logits(meant).norm()


def test_rows_are_the_same_before_and_after_a_forward_that_packs(tmp_path: Path) -> None:
    """EasyEdit evaluates before it edits, and that forward packs 4-bit weights on some CPUs."""
    model = quantized_model("4-bit", tmp_path)
    targets = find_targets(model, toy_targets(model))
    batch = make_batch(model, tokenizer_for(model), as_requests(OBSERVED))
    expected, _ = capture(model, targets, batch)
    logits(model)

    rows, _ = capture(model, targets, batch)

    for name, row in rows.items():
        for part in ("x", "delta"):
            one, other = getattr(row, part), getattr(expected[name], part)
            assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("nested", [False, True])
def test_a_gradient_passes_through_a_packed_layer_and_leaves_it_packed(nested: bool) -> None:
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(256, 64, bias=False, compute_dtype=torch.float32)
    scale = 3 * torch.rand(64, 256).exp()  # blocks that differ, so that their order matters
    layer.weight = bitsandbytes.nn.Params4bit(
        scale * torch.randn(64, 256),
        requires_grad=False,
        compress_statistics=nested,
        module=layer,
    )
    model = nn.Sequential(layer).to("cpu").eval()
    x = torch.randn(3, 256)
    needs = x.clone().requires_grad_()
    expected = model(needs)
    (gradient,) = torch.autograd.grad(expected.square().sum(), needs)
    with torch.no_grad():
        packed = model(x)
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("bitsandbytes packs on CPUs with AVX512-BF16 only")
    bits, state = layer.weight.data.clone(), layer.weight.quant_state.absmax.clone()

    for _ in range(2):
        with differentiable(model):
            output = model(needs)
            (ours,) = torch.autograd.grad(output.square().sum(), needs)
        assert (output - expected).norm() < 0.01 * expected.norm()
        assert (ours - gradient).norm() < 0.01 * gradient.norm()

    assert torch.equal(layer.weight.data, bits)
    assert torch.equal(layer.weight.quant_state.absmax, state)
    with torch.no_grad():
        assert torch.equal(model(x), packed)


def test_a_capture_that_breaks_leaves_the_packed_weights_packed(tmp_path: Path) -> None:
    model = quantized_model("4-bit", tmp_path)
    editor, plain = editor_of(model), logits(model)
    handle = model.lm_head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        editor.edit(REQUEST)
    handle.remove()
    assert torch.equal(logits(model), plain)
