"""An edit that was made on two accelerators is the same edit elsewhere: for peft on one device, on
another number of accelerators, and in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import dispatch_model
from edited import FACTS, editor_of, logits_on_facts
from offloads import all_stored, offloaded
from placements import PLACEMENTS, device_map
from toys import same_bits, toy_model, toy_targets

from easyedit_mend_parallel import Journal, MendParallel, export_peft, load_edit, save_edited

CUTS = ["llama-cut-at-5", "gpt2-cut-at-4", "gptj-three-devices"]


def spread(placement: str) -> Any:
    family, blocks, head = PLACEMENTS[placement]
    model = toy_model(family)
    return dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")


def spread_editor(model: Any, apply: str = "weight") -> MendParallel:
    editor = editor_of(model, apply)
    editor.network.to("cpu")
    return editor


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


@pytest.mark.parametrize("placement", CUTS)
def test_peft_on_one_device_gives_the_logits_of_an_edit_over_several(
    placement: str, tmp_path: Path
) -> None:
    model = spread(placement)
    plain = logits_on_facts(model)
    result = spread_editor(model).edit(FACTS)
    assert len({where.device for where in result.placements.values()}) == 2
    saved = load_edit(result.save(tmp_path / "edit.safetensors"))
    fresh = toy_model(PLACEMENTS[placement][0])

    adapted = peft.PeftModel.from_pretrained(fresh, export_peft(saved, tmp_path / "adapter"))

    assert close(logits_on_facts(fresh, adapted.eval()), logits_on_facts(model))
    assert not close(plain, logits_on_facts(model))


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_it_goes_onto_three_accelerators_one_and_none(apply: str, tmp_path: Path) -> None:
    model = spread("llama-cut-at-5")
    path = spread_editor(model).edit(FACTS).save(tmp_path / "edit")
    for base in (spread("llama-three-devices"), toy_model("llama").to("sim:1"), toy_model("llama")):
        before = logits_on_facts(base)
        applied = load_edit(path).apply(base, apply)
        assert applied.unchecked == {}
        assert close(logits_on_facts(base), logits_on_facts(model))
        applied.rollback()
        assert torch.equal(logits_on_facts(base), before)


@pytest.mark.parametrize("kind", ["targets-ram", "targets-dat", "targets-safetensors"])
def test_it_goes_onto_an_offloaded_base(kind: str, tmp_path: Path) -> None:
    model = spread("llama-cut-at-5")
    path = spread_editor(model).edit(FACTS).save(tmp_path / "edit")
    base = offloaded(toy_model("llama"), kind, tmp_path, 0)
    before = all_stored(base, toy_targets(base))
    applied = load_edit(path).apply(base)
    assert applied.unchecked == {}
    assert close(logits_on_facts(base), logits_on_facts(model))
    applied.rollback()
    after = all_stored(base, toy_targets(base))
    assert all(same_bits(after[name], before[name]) for name in before)


def test_a_journal_of_edits_over_two_accelerators_is_opened_on_one_device(tmp_path: Path) -> None:
    model = spread("llama-cut-at-5")
    journal, editor = Journal(tmp_path).apply_to(model), spread_editor(model)
    for fact in FACTS:
        journal.add(editor.edit(fact))
    assert journal.undo(2) == "recomputed"
    fresh = toy_model("llama")
    Journal(tmp_path).apply_to(fresh)
    assert close(logits_on_facts(fresh), logits_on_facts(model))


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize("kind", [None, "one-of-each", "targets-safetensors"])
def test_a_model_over_several_places_is_saved_with_its_edits(
    kind: str | None, apply: str, tmp_path: Path
) -> None:
    model = (
        spread("llama-cut-at-5")
        if kind is None
        else offloaded(toy_model("llama"), kind, tmp_path, 0)
    )
    spread_editor(model, apply).edit(FACTS)
    folder = save_edited(model, tmp_path / "saved")
    again = type(model).from_pretrained(folder, device_map="cpu").eval()
    assert close(logits_on_facts(again), logits_on_facts(model))
