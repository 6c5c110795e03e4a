"""Scoped edits are saved, put back onto their base, listed and undone, and never exported as if
they applied everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scoped_toys import LINES, THREE, editor_of, logits
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets
from typer.testing import CliRunner

from easyedit_mend_parallel import (
    EditError,
    Journal,
    UpdateError,
    export_delta,
    export_peft,
    load_edit,
    save_archive,
    save_edited,
    squash,
)
from easyedit_mend_parallel.cli.app import app
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory

PROMPTS = [request["prompt"] for request in THREE]


def saved(path: Path) -> tuple[Any, Path]:
    model = toy_model("llama")
    result = editor_of(model).edit(THREE)
    return model, result.save(path / "edit.safetensors")


def test_a_saved_edit_is_felt_on_its_base_as_it_was(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    fresh = toy_model("llama")
    plain = logits(fresh, PROMPTS)
    applied = load_edit(path).apply(fresh, "scoped", scoping=editor_of(fresh).scoping)
    assert same_bits(logits(fresh, PROMPTS), logits(model, PROMPTS))
    assert scoped_memory(fresh).bytes == scoped_memory(model).bytes
    applied.rollback()
    assert same_bits(logits(fresh, PROMPTS), plain)


def test_it_needs_a_scope_and_the_base_below_the_targets(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    fresh = toy_model("llama")
    with pytest.raises(EditError, match="no scope was given"):
        load_edit(path).apply(fresh, "scoped")
    scoping = editor_of(fresh).scoping
    with torch.no_grad():
        fresh.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(EditError, match=r"below model\.layers\.3"):
        load_edit(path).apply(fresh, "scoped", scoping=scoping)
    assert scoped_memory(fresh) is None


def test_a_further_edit_is_refused_where_the_blocks_below_have_changed() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    editor.edit(THREE[0])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(UpdateError, match="have changed"):
        editor.edit(THREE[1])
    assert len(scoped_memory(model)) == 1


def test_what_cannot_hold_a_scope_says_so(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    edit = load_edit(path)
    for export in (
        lambda: export_peft(edit, tmp_path / "adapter"),
        lambda: export_delta(edit, tmp_path / "delta"),
        lambda: squash(edit, 2),
        lambda: save_edited(model, tmp_path / "model"),
    ):
        with pytest.raises(EditError, match="apply: weight"):
            export()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["edit.safetensors"]


def test_a_journal_holds_scoped_edits_and_takes_any_out(tmp_path: Path) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    journal = Journal(tmp_path / "edits").apply_to(model, apply="scoped", scoping=editor.scoping)
    for request in THREE:
        journal.add(editor.edit(request))
    felt = logits(model, PROMPTS)
    fresh = toy_model("llama")
    again = Journal(tmp_path / "edits").apply_to(
        fresh, apply="scoped", scoping=editor_of(fresh).scoping
    )
    assert same_bits(logits(fresh, PROMPTS), felt)
    assert again.undo(2) == "restored"
    again.reapply(2)
    assert same_bits(logits(fresh, PROMPTS), felt)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_commands_edit_list_undo_show_and_refuse_to_export(tmp_path: Path) -> None:
    model = toy_model("llama")
    tokenizer = tokenizer_for(model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    archive = save_archive(tmp_path / "a.safetensors", toy_network(model, tokenizer, edit_lr=1e-2))
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    fields = toy_hparams(
        toy_targets(model),
        apply="scoped",
        archive=str(archive),
        aggregate_options={"preserved_text": str(tmp_path / "text.txt")},
    ).to_dict()
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**fields, "model_name": str(tmp_path / "model")}))
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(map(json.dumps, THREE)))
    folder = tmp_path / "edits"
    done = run("edit", config, "--requests", facts, "--save", folder, "--json", "--no-verify")
    assert done.exit_code == 0, done.output
    answers = [one for one in json.loads(done.stdout)["answers"] if one["role"] == "new"]
    assert all(one["before"] != one["after"] for one in answers)
    # A second run puts the journal's edits onto the model first.
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "my name is", "target_new": "Oslo"}))
    assert run("edit", config, "--requests", more, "--save", folder, "--no-verify").exit_code == 0
    assert len(json.loads(run("list", folder, "--json").stdout)) == 4
    shown = run("show", folder, "--config", config, "--json")
    assert shown.exit_code == 0, shown.output
    assert any(one["before"] != one["after"] for one in json.loads(shown.stdout)["answers"])
    near = json.loads(shown.stdout)["near"]
    own = [one for one in near if one["text"] == one["prompt"] == PROMPTS[0]]
    assert own[0]["logit"] > own[0]["threshold"]
    drawn = run("show", folder, "--config", config)
    assert "nearest requests" in drawn.stdout
    assert run("undo", folder, 1).exit_code == 0
    for refused in (
        ("export", folder, "--peft", tmp_path / "adapter"),
        ("apply", folder, config, "--out", tmp_path / "out"),
    ):
        done = run(*refused)
        assert isinstance(done.exception, EditError)
        assert "apply: weight" in str(done.exception)
