"""Edits of experts are saved, applied, squashed and exported like those of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from toy_experts import MIXTURES, stacks, toy_mixture
from toys import (
    REQUESTS,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_network,
    weights,
)

from easyedit_mend_parallel import (
    MendParallel,
    export_delta,
    export_peft,
    load_edit,
    save_archive,
    save_edited,
    squash,
)
from easyedit_mend_parallel.weights.target import parameter_of

of_stacks = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.19"), reason="peft 0.18 expects other shapes"
)


def edited(family: str, names: list[str] | None = None, **options: Any) -> tuple[Any, Any]:
    model = toy_mixture(family)
    names, tokenizer = names or stacks(model), tokenizer_for(model)
    network = toy_network(model, tokenizer, names)
    editor = MendParallel(model, tokenizer, toy_hparams(names, **options), network=network)
    return model, editor.edit(REQUESTS)


def assert_alike(one: Any, other: Any, bound: float) -> None:
    was = weights(other)
    for name, weight in weights(one).items():
        torch.testing.assert_close(
            weight, was[name], rtol=0, atol=bound * float(weight.abs().max())
        )


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("how", [{}, {"aggregate": "least_squares"}])
def test_a_saved_edit_gives_the_same_bits_on_the_same_base(
    family: str, how: dict[str, str], tmp_path: Path
) -> None:
    model, result = edited(family, **how)
    result.save(tmp_path / "edit.safetensors")
    fresh = toy_mixture(family)
    before = weights(fresh)

    applied = load_edit(tmp_path / "edit.safetensors").apply(fresh)

    assert not applied.unchecked
    assert_unchanged(fresh, weights(model))
    applied.rollback()
    assert_unchanged(fresh, before)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_squashed_edit_is_near_and_smaller(family: str) -> None:
    model, result = edited(family)
    small = squash(result.saved(), rank=12)
    fresh = toy_mixture(family)

    small.apply(fresh)

    assert small.rows <= 12 < result.saved().rows
    assert_alike(fresh, model, 1e-2)


@of_stacks
@pytest.mark.parametrize("family", MIXTURES)
def test_peft_merges_to_the_weights_of_the_edit(family: str, tmp_path: Path) -> None:
    model, result = edited(family)
    folder = export_peft(result.saved(), tmp_path / "adapter")

    adapted = peft.PeftModel.from_pretrained(toy_mixture(family), folder).eval()

    assert_alike(adapted.merge_and_unload(), model, 1e-5)
    assert not same_bits(
        model.get_parameter(stacks(model)[0]).detach(),
        toy_mixture(family).get_parameter(stacks(model)[0]).detach(),
    )


@of_stacks
def test_peft_merges_experts_next_to_other_layers(tmp_path: Path) -> None:
    names = ["model.layers.3.mlp.experts.down_proj[1]", "model.layers.3.self_attn.o_proj.weight"]
    model, result = edited("mixtral", names)
    folder = export_peft(result.saved(), tmp_path / "adapter")

    adapted = peft.PeftModel.from_pretrained(toy_mixture("mixtral"), folder).eval()

    assert_alike(adapted.merge_and_unload(), model, 1e-5)


def test_a_delta_has_the_name_and_the_shape_of_the_slice(tmp_path: Path) -> None:
    model, result = edited("gpt_oss")
    deltas = load_file(export_delta(result.saved(), tmp_path / "delta.safetensors"))
    fresh = toy_mixture("gpt_oss")

    with torch.no_grad():
        for name, delta in deltas.items():
            stack, expert = parameter_of(name)
            fresh.get_parameter(stack)[expert] += delta

    assert_unchanged(fresh, weights(model))


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_an_edited_model_is_saved_with_its_edits(apply: str, tmp_path: Path) -> None:
    model, _ = edited("olmoe", apply=apply)
    written, _ = edited("olmoe")

    save_edited(model, tmp_path / "model")

    loaded = type(model).from_pretrained(tmp_path / "model")
    assert_alike(loaded, written, 1e-6)


def test_an_archive_is_read_for_the_stack_that_it_was_made_for(tmp_path: Path) -> None:
    model = toy_mixture("mixtral")
    names, tokenizer = stacks(model), tokenizer_for(model)
    network = toy_network(model, tokenizer, names)
    path = tmp_path / "archive.safetensors"
    save_archive(path, network)
    one = MendParallel(model, tokenizer, toy_hparams(names), network=network).edit(REQUESTS)
    after = weights(model)
    one.rollback()

    MendParallel(model, tokenizer, toy_hparams(names, archive=str(path))).edit(REQUESTS)

    assert_unchanged(model, after)
