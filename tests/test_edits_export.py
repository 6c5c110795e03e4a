"""Other tools get the very edit: peft, plain state dicts, ordinary checkpoints."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from edited import FACTS, edited, editor_of, logits_on_facts
from offloads import digests, from_checkpoint, offloaded
from placements import device_map
from quantized import quantized_model
from safetensors.torch import load_file
from test_edits import close
from toys import (
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import (
    EditError,
    MendParallel,
    export_delta,
    export_peft,
    save_edited,
    squash,
)
from easyedit_mend_parallel.edits.squashing import of_true_rank
from easyedit_mend_parallel.weights.update import LowRankUpdate


def loaded(folder: Path, model: Any) -> Any:
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_peft_gives_the_logits_and_merges_to_the_weights_of_the_edit(
    family: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, result = edited(family)
    folder = export_peft(result.saved(), tmp_path / "adapter")

    fresh = toy_model(family)
    adapted = peft.PeftModel.from_pretrained(fresh, folder).eval()

    assert close(logits_on_facts(fresh, adapted), logits_on_facts(model), 1e-4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(set(config["rank_pattern"].values())) >= 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    merged = adapted.merge_and_unload()
    for name, weight in weights(model).items():
        assert close(merged.get_parameter(name).detach(), weight, 1e-6), name
    assert not [w for w in recwarn if "fan_in_fan_out" in str(w.message)]


def test_an_adapter_has_the_true_rank_of_a_batch(tmp_path: Path) -> None:
    model = toy_model("llama")
    result = editor_of(model, aggregate="least_squares").edit(FACTS)
    saved = result.saved()
    for name, update in saved.updates.items():  # as a solved batch with more tokens than inputs
        saved.updates[name] = LowRankUpdate(
            torch.cat([update.keys, update.keys * 0.5, torch.zeros_like(update.keys)]),
            torch.cat([update.values * 0.5, update.values, torch.zeros_like(update.values)]),
            torch.cat([update.request] * 3),
        )
    rows = saved.rows

    trimmed = of_true_rank(saved)
    folder = export_peft(saved, tmp_path / "adapter")

    ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert max(ranks.values()) == trimmed.rows <= rows // 3
    assert trimmed.about["squashed"]["rows"] == rows
    assert max(trimmed.about["squashed"]["errors"].values()) <= 1e-6
    adapted = peft.PeftModel.from_pretrained(toy_model("llama"), folder).eval()
    assert close(logits_on_facts(toy_model("llama"), adapted), logits_on_facts(model), 1e-4)


def test_an_edit_of_full_rank_is_exported_as_it_is() -> None:
    _, result = edited()
    saved = result.saved()
    for name, update in saved.updates.items():
        size = min(len(update.keys), update.keys.shape[1], update.values.shape[1])
        whole = LowRankUpdate(
            torch.eye(size, update.keys.shape[1]),
            torch.eye(size, update.values.shape[1]),
            update.request[:size],
        )
        saved.updates[name] = whole

    assert of_true_rank(saved) is saved


def test_targets_of_unequal_ranks_keep_their_own(tmp_path: Path) -> None:
    model, result = edited()
    saved = squash(result.saved(), 7)
    first, second = toy_targets(model)[:2]
    saved.updates[first] = squash(result.saved(), 2).updates[first]
    saved.updates[second] = type(saved.updates[second])(
        *(getattr(saved.updates[second], part)[:0] for part in ("keys", "values", "request"))
    )
    folder = export_peft(saved, tmp_path / "adapter")
    fresh, other = toy_model("llama"), toy_model("llama")
    saved.apply(other)
    adapted = peft.PeftModel.from_pretrained(fresh, folder).eval()
    assert close(logits_on_facts(fresh, adapted), logits_on_facts(other), 1e-4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["rank_pattern"][first.removesuffix(".weight")] == 2
    assert second.removesuffix(".weight") not in config["target_modules"]


def edited_head(apply: str = "weight", **options: Any) -> tuple[Any, Any]:
    """A Llama with an edit of its head."""
    model = toy_model("llama", **options)
    tokenizer = tokenizer_for(model)
    names = ["lm_head.weight", *toy_targets(model)[:2]]
    network = toy_network(model, tokenizer, names, edit_lr=1e-3)
    hparams = toy_hparams(names, apply=apply)
    return model, MendParallel(model, tokenizer, hparams, network=network).edit(FACTS)


def test_a_tied_weight_that_was_written_is_no_adapter_and_one_whose_output_was_is(
    tmp_path: Path,
) -> None:
    model, result = edited_head(tied=True)
    with pytest.raises(EditError, match=r"one weight with model.embed_tokens.weight"):
        export_peft(result.saved(), tmp_path / "written")
    assert list(tmp_path.iterdir()) == []

    model, result = edited_head("output", tied=True)
    folder = export_peft(result.saved(), tmp_path / "output")
    fresh = toy_model("llama", tied=True)
    adapted = peft.PeftModel.from_pretrained(fresh, folder).eval()
    assert close(logits_on_facts(fresh, adapted), logits_on_facts(model), 1e-4)


def test_an_export_is_never_put_over_something_else(tmp_path: Path) -> None:
    _model, result = edited()
    (tmp_path / "mine").write_text("")
    with pytest.raises(EditError, match="not empty: name a new folder"):
        export_peft(result.saved(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_delta_added_to_the_base_gives_the_edited_weights(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_mend_parallel.edits.delta.WRITE_LIMIT", 40)  # a few rows at once
    model = toy_model(family, dtype=dtype)
    before = weights(model)
    result = editor_of(model).edit(FACTS)
    deltas = load_file(export_delta(result.saved(), tmp_path / "delta.safetensors"))
    assert deltas.keys() == set(toy_targets(model))
    for name, delta in deltas.items():
        assert delta.dtype == dtype
        edited_weight = model.get_parameter(name).detach()
        # One unit in the last place: products over fewer rows may be rounded otherwise.
        unit = torch.finfo(dtype).eps * edited_weight.float().abs().max()
        assert ((before[name] + delta).float() - edited_weight.float()).abs().max() <= unit


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["resident", "all-ram", "all-dat", "mapped", "checkpoint"])
@pytest.mark.parametrize("apply", ["weight", "output"])
def test_an_edited_model_is_saved_as_a_checkpoint_with_its_edits(
    apply: str, kind: str, tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = toy_model("llama", tied=tied)
    where = device_map(plain, (0,) * 6, 0, lambda _: "cpu") | {"model.layers.4": "disk"}
    if kind == "mapped":
        where["model.layers.5"] = "disk"
    model = {
        "resident": lambda: plain,
        "all-ram": lambda: offloaded(plain, "all-ram", tmp_path, "cpu"),
        "all-dat": lambda: offloaded(plain, "all-dat", tmp_path, "cpu"),
        "mapped": lambda: _mapped(plain, where, tmp_path),
        "checkpoint": lambda: from_checkpoint(plain, tmp_path, where),
    }[kind]()
    reference = toy_model("llama", tied=tied)
    before = digests(tmp_path)
    editor_of(model, apply).edit(FACTS)
    expected = logits_on_facts(model)
    editor_of(reference).edit(FACTS)

    with caplog.at_level(logging.WARNING, "easyedit_mend_parallel"):
        folder = save_edited(model, tmp_path / "saved", tokenizer_for(model))

    again = loaded(folder, plain)
    assert close(logits_on_facts(again), logits_on_facts(reference), 1e-5)
    for name in toy_targets(again):
        assert close(again.get_parameter(name), reference.get_parameter(name), 1e-6)
    assert torch.equal(logits_on_facts(model), expected)
    assert "without their edits" not in caplog.text
    assert (folder / "tokenizer_config.json").exists()
    now = digests(tmp_path)
    assert {path: now[path] for path in before} == before  # nothing else was written to
    assert sorted(path.split("/")[0] for path in now.keys() - before.keys()) == ["saved"] * len(
        now.keys() - before.keys()
    )


def _mapped(model: Any, where: dict[str, str], folder: Path) -> Any:
    from accelerate import dispatch_model

    return dispatch_model(
        model, where, main_device="cpu", offload_dir=str(folder / "offload"), force_hooks=True
    )


def test_past_the_overlay_limit_a_checkpoint_has_the_edits_too(tmp_path: Path) -> None:
    model = offloaded(toy_model("llama"), "all-dat", tmp_path, "cpu")
    hparams = toy_hparams(toy_targets(model), overlay_limit=0)
    editor = editor_of(toy_model("llama"))
    MendParallel(model, tokenizer_for(model), hparams, network=editor.network).edit(FACTS)
    expected = logits_on_facts(model)
    again = loaded(save_edited(model, tmp_path / "saved"), model)
    assert close(logits_on_facts(again), expected, 1e-5)


def test_writing_edits_of_outputs_for_the_checkpoint_leaves_the_model_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model("llama")
    before = weights(model)
    result = editor_of(model, "output").edit(FACTS)
    expected = logits_on_facts(model)
    for save in (
        lambda: save_edited(model, tmp_path / "one"),
        lambda: save_edited(model, tmp_path / "two", object()),  # no tokenizer: breaks off
    ):
        with pytest.raises(AttributeError) if (tmp_path / "one").exists() else _nothing():
            save()
        assert_unchanged(model, before)
        assert torch.equal(logits_on_facts(model), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with caplog.at_level(logging.WARNING):
        model.state_dict()  # the notice is back
    assert "without their edits" in caplog.text
    result.rollback()
    assert_unchanged(model, before)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_what_no_checkpoint_can_hold_is_refused(tmp_path: Path) -> None:
    model, _result = edited_head("output", tied=True)
    with pytest.raises(EditError, match="only the output of its own layer"):
        save_edited(model, tmp_path / "tied")
    quantized = quantized_model("8-bit", tmp_path / "base")
    names = ["model.layers.3.mlp.down_proj.weight"]
    network = toy_network(quantized, tokenizer_for(quantized), names)
    hparams = toy_hparams(names, apply="output")
    MendParallel(quantized, tokenizer_for(quantized), hparams, network=network).edit(FACTS)
    with pytest.raises(EditError, match=r"quantized .*apply it there"):
        save_edited(quantized, tmp_path / "quantized")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_plain_save_pretrained_has_written_edits_where_the_map_says_offloaded(
    tmp_path: Path,
) -> None:
    plain = toy_model("llama")
    where = device_map(plain, (0,) * 6, 0, lambda _: "cpu") | {"model.layers.5": "disk"}
    model = from_checkpoint(plain, tmp_path, where)
    editor_of(model).edit(FACTS)
    model.save_pretrained(tmp_path / "saved")
    again = loaded(tmp_path / "saved", plain)
    assert close(logits_on_facts(again), logits_on_facts(model), 1e-5)
    name = toy_targets(again)[-1]
    assert not same_bits(again.get_parameter(name), plain.get_parameter(name))


def test_a_copy_of_a_model_is_saved_with_the_edits_it_was_copied_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model("llama")
    result = editor_of(model, "output").edit(FACTS)
    expected = logits_on_facts(model)
    twin = copy.deepcopy(model)
    result.rollback()
    with caplog.at_level(logging.WARNING, "easyedit_mend_parallel"):
        folder = save_edited(twin, tmp_path / "twin")
    assert "without their edits" not in caplog.text
    assert close(logits_on_facts(loaded(folder, twin)), expected, 1e-5)
    assert torch.equal(logits_on_facts(twin), expected)
