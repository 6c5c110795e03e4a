"""In EasyEdit, edits that are applied to outputs and edits of quantized models run through with
their metrics, come off by every way that EasyEdit restores, and add up where it keeps them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from host_toys import ASKED, KEPT, TODAY, UNDONE
from quantized import KINDS, quantized_model, wide_model
from torch import Tensor
from toys import (
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

import easyedit_mend_parallel as ours
from easyedit_mend_parallel.weights.stores.output import edited_outputs

MODELS = ("floating", "8-bit", "4-bit")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes its logs where it is


def base_editor(kind: str, folder: Path, **options: Any) -> Any:
    """EasyEdit's editor of a (model, tokenizer) pair, with `apply: output`."""
    from easyeditor import BaseEditor

    plain = wide_model()
    names = toy_targets(plain)
    network = toy_network(plain, tokenizer_for(plain))
    archive = ours.save_archive(folder / "archive.safetensors", network)
    model = plain if kind == "floating" else quantized_model(kind, folder / "model")
    values: dict[str, Any] = {"archive": str(archive), "apply": "output", "device": "cpu"}
    hparams = toy_hparams(names, **(values | options))
    hparams.model_name = (model, tokenizer_for(model))
    return BaseEditor.from_hparams(hparams)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(4, 12)[None]).logits.cpu()


@pytest.mark.parametrize("kind", MODELS)
def test_edit_measures_and_takes_the_edit_off_again(kind: str, tmp_path: Path) -> None:
    editor = base_editor(kind, tmp_path)
    model = editor.model
    plain = logits(model)
    before = weights(model)

    metrics, edited, weights_copy = editor.edit(
        **ASKED,
        rephrase_prompts=ASKED["prompts"],
        locality_inputs={
            "near": {"prompt": ["the sun rises in the"] * 3, "ground_truth": ["east"] * 3}
        },
        **UNDONE,
    )

    assert edited is model
    assert len(metrics) == len(REQUESTS)
    for measured in metrics:
        assert measured["post"].keys() >= {"rewrite_acc", "rephrase_acc", "locality"}
    # what was measured was the edited model: predictions next to the edit changed
    assert any(min(measured["post"]["locality"]["near_acc"]) < 1 for measured in metrics)
    assert set(weights_copy) == set(editor.hparams.inner_params)
    assert edited_outputs(model) == {}
    assert torch.equal(logits(model), plain)
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", MODELS)
def test_edits_that_are_kept_add_up_and_come_off(kind: str, tmp_path: Path) -> None:
    editor = base_editor(kind, tmp_path)
    model, names = editor.model, list(editor.hparams.inner_params)
    plain = logits(model)

    _, _, weights_copy = editor.edit(**ASKED, **KEPT)

    assert set(edited_outputs(model).values()) == {len(REQUESTS)}
    assert set(weights_copy) == set(names)
    assert all(
        weights_copy[name].data_ptr() == model.get_parameter(name).data_ptr() for name in names
    )
    edited = logits(model)
    assert not torch.allclose(edited, plain, atol=1e-3)
    weights_copy()
    assert set(edited_outputs(model).values()) == {len(REQUESTS) - 1}
    assert not torch.equal(logits(model), edited)
    ours.rollback_all(model)
    assert edited_outputs(model) == {}
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_is_edited_and_its_items_take_it_off(kind: str, tmp_path: Path) -> None:
    editor = base_editor(kind, tmp_path, batch_size=len(REQUESTS))
    plain = logits(editor.model)
    editor.batch_edit(**ASKED, **UNDONE)
    assert torch.equal(logits(editor.model), plain)

    _, _, weights_copy = editor.batch_edit(**ASKED, **KEPT)

    assert set(edited_outputs(editor.model).values()) == {1}
    assert not torch.allclose(logits(editor.model), plain, atol=1e-3)
    weights_copy()
    assert torch.equal(logits(editor.model), plain)


@pytest.mark.skipif(not TODAY, reason="the release has no normal_edit")
@pytest.mark.parametrize("kind", MODELS)
def test_normal_edit_restores_by_looping_over_the_items(kind: str, tmp_path: Path) -> None:
    editor = base_editor(kind, tmp_path)
    plain = logits(editor.model)
    editor.normal_edit(ASKED["prompts"], ASKED["target_new"])
    assert torch.equal(logits(editor.model), plain)


def test_a_model_that_easyedit_loads_is_quantized_by_model_kwargs(tmp_path: Path) -> None:
    from easyeditor import BaseEditor

    pair = base_editor("floating", tmp_path)
    folder = tmp_path / "toy-llama"
    wide_model().save_pretrained(folder)
    pair.tok.save_pretrained(folder)
    values = vars(pair.hparams) | {
        "model_name": str(folder),
        "model_kwargs": {"quantization_config": KINDS["4-bit"], "device_map": {"": "cpu"}},
    }
    hparams = ours.MENDParallelHyperParams(**values)

    editor = BaseEditor.from_hparams(hparams)

    assert type(editor.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    plain = logits(editor.model)
    metrics, edited, _ = editor.edit(**ASKED, **KEPT)
    assert len(metrics) == len(REQUESTS)
    assert not torch.allclose(logits(edited), plain, atol=1e-3)
    ours.rollback_all(edited)
    assert torch.equal(logits(edited), plain)


def test_the_name_mend_applies_to_outputs_where_replace_mend_says_so(tmp_path: Path) -> None:
    from easyeditor import BaseEditor, MENDHyperParams

    own = base_editor("floating", tmp_path).hparams
    model = toy_model("llama")
    ours.replace_mend(apply="output")
    try:
        known = MENDHyperParams.__dataclass_fields__
        values = {name: value for name, value in vars(own).items() if name in known}
        model = copy.deepcopy(own.model_name[0])
        plain = logits(model)
        hparams = MENDHyperParams(
            **values | {"alg_name": "MEND", "model_name": (model, own.model_name[1])}
        )
        before = weights(model)
        _, edited, _ = BaseEditor.from_hparams(hparams).edit(**ASKED, **KEPT)
        assert_unchanged(edited, before)
        assert not torch.allclose(logits(edited), plain, atol=1e-3)
        ours.rollback_all(edited)
        assert torch.equal(logits(edited), plain)
    finally:
        ours.restore_mend()
