"""An edit that was saved is the same edit on the same base, wherever that lies, and no other base
takes it."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import FACTS, edited, editor_of, logits_on_facts
from offloads import all_stored, offloaded
from quantized import quantized_model, wide_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
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
    UpdateError,
    load_edit,
    rollback_all,
)
from easyedit_mend_parallel.files import HEADER
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()[HEADER])
    header.pop("checksum")
    return header


def rewrite(path: Path, header: dict[str, Any], **changed: torch.Tensor) -> None:
    save_file({**load_file(path), **changed}, path, metadata={HEADER: json.dumps(header)})


def close(one: torch.Tensor, other: torch.Tensor, bound: float = 1e-4) -> bool:
    return bool((one - other).abs().max() <= bound * other.abs().max())


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("apply", ["weight", "output"])
def test_a_saved_edit_is_the_same_edit_on_a_fresh_base(
    family: str, apply: str, tmp_path: Path
) -> None:
    model, result = edited(family)
    fresh = toy_model(family)
    before, plain = weights(fresh), logits_on_facts(fresh)

    applied = load_edit(result.save(tmp_path / "edit.safetensors")).apply(fresh, apply)

    assert close(logits_on_facts(fresh), logits_on_facts(model), 1e-5)
    assert not close(plain, logits_on_facts(model), 1e-3)
    assert applied.unchecked == {}
    assert applied.placements == result.placements
    applied.rollback()
    assert_unchanged(fresh, before)
    assert torch.equal(logits_on_facts(fresh), plain)


@pytest.mark.parametrize("kind", ["all-ram", "all-dat"])
def test_it_goes_onto_an_offloaded_base_and_comes_off_again(kind: str, tmp_path: Path) -> None:
    model, result = edited()
    saved = load_edit(result.save(tmp_path / "edit"))
    base = offloaded(toy_model("llama"), kind, tmp_path, "cpu")
    before = all_stored(base, toy_targets(base))

    applied = saved.apply(base)

    assert close(logits_on_facts(base), logits_on_facts(model), 1e-5)
    applied.rollback()
    after = all_stored(base, toy_targets(base))
    assert all(same_bits(after[name], before[name]) for name in before)


def test_an_edit_of_an_offloaded_base_is_saved_with_the_checksums_of_the_plain_one(
    tmp_path: Path,
) -> None:
    _, plain = edited()
    for kind in ("all-ram", "all-dat"):
        for apply in ("weight", "output"):
            base = offloaded(toy_model("llama"), kind, tmp_path / kind / apply, "cpu")
            result = editor_of(base, apply).edit(FACTS)
            assert result.saved().about["base"] == plain.saved().about["base"]


def test_the_file_says_what_was_asked_and_what_happened(tmp_path: Path) -> None:
    request = {**FACTS[0], "subject": "France", "locality": {"n": {"prompt": "a cat"}}}
    model = toy_model("llama")
    result = editor_of(model).edit(request, losses_after=True)

    saved = load_edit(result.save(tmp_path / "edit"))

    assert saved.requests == result.requests
    assert saved.about["losses"] == result.losses
    assert saved.about["losses_after"] == result.losses_after
    assert saved.about["hparams"]["rank"] == 6
    assert saved.about["versions"]["torch"] == version("torch")
    assert saved.about["placements"][toy_targets(model)[0]]["kept"] == "resident"
    tokens = saved.about["tokens"]["input_ids"]
    assert tokens == [*FACTS[0]["prompt"].split(), "Rome"]
    assert saved.norms.keys() == result.norms.keys()
    for name, norm in saved.norms.items():
        dense = result.updates[name].values.T @ result.updates[name].keys
        assert norm == pytest.approx(float(dense.norm()), rel=1e-4)


def test_rows_that_add_nothing_are_not_saved(tmp_path: Path) -> None:
    _, result = edited()  # three requests of unequal lengths: padding, and tokens without a label
    saved = load_edit(result.save(tmp_path / "edit"))
    for name, update in result.updates.items():
        kept, at = saved.updates[name], saved.positions[name]
        dead = (update.keys == 0).all(1) | (update.values == 0).all(1)
        assert dead.any()
        assert len(kept.keys) == (~dead).sum()
        assert torch.equal(kept.keys, update.keys[at])
        assert torch.equal(kept.request, update.request[at])


def test_half_the_size_costs_a_rounding_of_each_entry(tmp_path: Path) -> None:
    model, result = edited()
    whole, half = result.save(tmp_path / "whole"), result.save(tmp_path / "half", half=True)
    saved = load_edit(whole).updates.values()
    numbers = sum(update.keys.numel() + update.values.numel() for update in saved)
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(2 * numbers, abs=99)
    for name, update in load_edit(half).updates.items():
        exact = load_edit(whole).updates[name]
        assert ((update.keys - exact.keys).abs() <= 2**-8 * exact.keys.abs()).all()
    fresh = toy_model("llama")
    load_edit(half).apply(fresh)
    assert close(logits_on_facts(fresh), logits_on_facts(model), 1e-2)


def test_another_base_is_refused_and_the_weight_is_named(tmp_path: Path) -> None:
    _, result = edited()
    saved = load_edit(result.save(tmp_path / "edit"))
    other = toy_model("llama")
    name = toy_targets(other)[4]
    with torch.no_grad():
        other.get_parameter(name)[0, 0] += 1e-6
    before = weights(other)

    with pytest.raises(EditError, match=f"another base model .*{name} has other bits"):
        saved.apply(other)

    assert_unchanged(other, before)
    saved.apply(other, check=False)
    assert not same_bits(other.get_parameter(name).detach(), before[name])


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    _, result = edited()
    saved = load_edit(result.save(tmp_path / "edit"))
    with pytest.raises(EditError, match=r"another model: .* is not in this model"):
        saved.apply(toy_model("gpt2"))
    wide = wide_model()
    short = {n: t for n, t in saved.targets.items() if n.startswith("model.layers.3")}
    part = copy.copy(saved)
    object.__setattr__(part, "targets", short)
    with pytest.raises(EditError, match=r"maps 16 to 24 there, and 64 to 128 in this one"):
        part.apply(wide, check=False)


@pytest.mark.parametrize(
    ("made", "used"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_the_same_base_in_another_dtype_is_known_again(
    made: torch.dtype, used: torch.dtype, tmp_path: Path
) -> None:
    base = toy_model("llama")
    base = base.to(made) if made != torch.float32 else base
    saved = load_edit(editor_of(base).edit(FACTS).save(tmp_path / "edit"))
    again, other = toy_model("llama", dtype=used), toy_model("llama", dtype=used, seed=5)
    assert saved.apply(again).unchecked == {}
    with pytest.raises(EditError, match="another base"):
        saved.apply(other)


def test_dtypes_that_cannot_be_compared_are_named_and_the_norms_are_compared(
    tmp_path: Path,
) -> None:
    base = toy_model("llama", dtype=torch.bfloat16)
    saved = load_edit(editor_of(base).edit(FACTS).save(tmp_path / "edit"))
    unchecked = saved.apply(toy_model("llama", dtype=torch.float16)).unchecked
    assert unchecked.keys() == set(toy_targets(base))
    assert all("made on bfloat16 and the weight is float16" in why for why in unchecked.values())


def test_a_quantized_base_is_known_by_its_norms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = wide_model()
    with torch.no_grad():
        for module in base.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.weight += 0.1 * torch.arange(64)
    base.save_pretrained(tmp_path / "base")
    names = [f"model.layers.3.mlp.{kind}_proj.weight" for kind in ("up", "down")]
    tokenizer = tokenizer_for(base)
    network = toy_network(base, tokenizer, names)
    result = MendParallel(base, tokenizer, toy_hparams(names), network=network).edit(FACTS)
    saved = load_edit(result.save(tmp_path / "edit"))
    quantized = type(base).from_pretrained(
        tmp_path / "base", quantization_config=_eight_bits(), device_map={"": "cpu"}
    )
    plain = logits_on_facts(quantized)

    with pytest.raises(UpdateError, match="apply: output"):
        saved.apply(quantized)
    applied = saved.apply(quantized, "output")

    assert not close(logits_on_facts(quantized), plain, 1e-3)
    assert "quantized (int8)" in applied.unchecked[names[0]]
    assert "its norms and biases" in applied.unchecked[names[0]]
    assert "was not compared" in caplog.text
    applied.rollback()
    assert torch.equal(logits_on_facts(quantized), plain)
    other = quantized_model("8-bit", tmp_path / "other")  # all its norms are 1
    with pytest.raises(EditError, match="norms and biases of this model have other bits"):
        saved.apply(other, "output")


def _eight_bits() -> Any:
    import transformers

    return transformers.BitsAndBytesConfig(load_in_8bit=True)


def test_saved_edits_of_one_base_go_onto_it_one_upon_the_other(tmp_path: Path) -> None:
    paths = []
    for number, fact in enumerate(FACTS):
        model, result = edited(requests=fact)
        paths.append(result.save(tmp_path / str(number)))
    model = toy_model("llama")
    before = weights(model)
    applied = [load_edit(path).apply(model) for path in paths]
    assert all(one.unchecked == {} for one in applied)
    applied[1].rollback()
    first_and_last = toy_model("llama")
    for path in (paths[0], paths[2]):
        load_edit(path).apply(first_and_last)
    assert_unchanged(model, weights(first_and_last))
    rollback_all(model)
    assert_unchanged(model, before)


def test_an_edit_of_an_edited_model_fits_the_base_and_the_model_it_was_made_on(
    tmp_path: Path,
) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    first = editor.edit(FACTS[0])
    between = weights(model)
    second = load_edit(editor.edit(FACTS[1]).save(tmp_path / "second"))
    assert second.apply(toy_model("llama")).unchecked == {}
    merged = toy_model("llama")  # as if the model with the first edit had been saved and loaded
    merged.load_state_dict(between)
    assert second.apply(merged).unchecked == {}
    with pytest.raises(EditError, match="another base"):
        load_edit(first.save(tmp_path / "first")).apply(merged)


def test_an_edit_that_was_rolled_back_cannot_be_saved(tmp_path: Path) -> None:
    _, result = edited()
    result.rollback()
    with pytest.raises(EditError, match="save it while it is in the model"):
        result.save(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_an_apply_that_fails_half_way_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result = edited()
    saved = load_edit(result.save(tmp_path / "edit"))
    fresh = toy_model("llama")
    before = weights(fresh)
    commit, calls = ResidentStaged.commit, []

    def failing(self: ResidentStaged) -> None:
        calls.append(self)
        commit(self)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResidentStaged, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        saved.apply(fresh)
    assert_unchanged(fresh, before)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    _, result = edited()
    path = result.save(tmp_path / "edit")
    with pytest.raises(EditError, match="there is no edit at"):
        load_edit(tmp_path / "nowhere")
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EditError, match="not a whole safetensors file"):
        load_edit(cut)
    plain = tmp_path / "plain"
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(EditError, match="is no saved edit"):
        load_edit(plain)
    header = header_of(path)
    for change, message in (
        ({"format_version": 3}, "has format 3, and this version reads formats 1 and 2"),
        ({"targets": [{"name": "x"}]}, "is damaged"),
        ({"requests": [{"prompt": "", "target_new": "x", "other": {}}]}, "is damaged"),
    ):
        rewrite(path, {**header, **change})
        with pytest.raises(EditError, match=message):
            load_edit(path)
    name = header["targets"][0]["name"]
    rewrite(path, header, **{f"{name}.keys": torch.zeros(1, 3)})
    with pytest.raises(EditError, match="do not fit its widths"):
        load_edit(path)


def test_a_request_that_json_cannot_say_is_saved_as_text(tmp_path: Path) -> None:
    request = {**FACTS[0], "where": Path("somewhere"), "layer": nn.Linear}
    model = toy_model("llama")
    result = editor_of(model).edit(request)
    saved = load_edit(result.save(tmp_path / "edit"))
    assert saved.requests[0].other["where"] == "somewhere"
