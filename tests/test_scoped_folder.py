"""The scoped edits of a model are saved as a folder and are the same on the same base, wherever it
lies; a folder that is not whole, or of another base, changes no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from scoped_toys import THREE, base_logits, editor_of, logits, parts
from toys import same_bits, tokenizer_for, toy_model, toy_targets, toy_tokenizer

from easyedit_mend_parallel import (
    EditError,
    UpdateError,
    load_scoped,
    rollback_all,
    save_scoped,
)
from easyedit_mend_parallel.edits import scoped_files
from easyedit_mend_parallel.method.untrained_scope import untrained_scope
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.stores.scoped import ScopedStaged, scoped_memory
from easyedit_mend_parallel.weights.target import find_targets

PROMPTS = [request["prompt"] for request in THREE]
TEXTS = [*PROMPTS, "some people say that blue", "some people say that the capital of France is"]
AGAIN = {**THREE[1], "target_new": "the sea"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """A model with four edits, the last of which replaces the second, and their folder."""
    model = toy_model("llama")
    editor = editor_of(model)
    for asked in (THREE[0], THREE[1:], AGAIN):
        editor.edit(asked)
    return model, save_scoped(model, tmp_path / "edits")


def load(folder: Path, model: Any, **options: Any) -> Any:
    return load_scoped(folder, model, tokenizer_for(model), **options)


@pytest.mark.parametrize("kept", ["resident", "ram", "disk"])
def test_on_the_same_base_the_edits_are_the_same_to_the_bit(
    kept: str, saved: tuple[Any, Path], tmp_path: Path
) -> None:
    model, folder = saved
    fresh = toy_model("llama")
    if kept == "ram":
        cpu_offload(fresh, torch.device("cpu"))
    if kept == "disk":
        disk_offload(fresh, str(tmp_path / "offloaded"), torch.device("cpu"))
    load(folder, fresh)
    assert same_bits(logits(fresh, TEXTS), logits(model, TEXTS))
    assert not same_bits(logits(fresh, TEXTS), base_logits(fresh, TEXTS))
    mine, other = scoped_memory(fresh), scoped_memory(model)
    assert mine.bytes == other.bytes
    assert [one.prompt for one in mine.requests] == [one.prompt for one in other.requests]
    for one, was in zip(mine.requests, other.requests, strict=True):
        assert (one.subject, one.answers, one.target) == (was.subject, was.answers, was.target)
        assert same_bits(one.keys, was.keys)
        assert same_bits(one.weights, was.weights)
    rollback_all(fresh)
    assert same_bits(logits(fresh, TEXTS), base_logits(model, TEXTS))


@pytest.mark.parametrize("bytes_in_a_file", [1, scoped_files.ROWS_IN_A_FILE])
def test_each_edit_comes_out_alone_and_what_it_replaced_comes_back(
    bytes_in_a_file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoped_files, "ROWS_IN_A_FILE", bytes_in_a_file)
    model = toy_model("llama")
    editor = editor_of(model)
    results = [editor.edit(asked) for asked in (THREE[0], THREE[1:], AGAIN)]
    folder = save_scoped(model, tmp_path / "edits")
    fresh = toy_model("llama")
    edits = load(folder, fresh)
    assert [[prompt for prompt, _ in edit.requests] for edit in edits] == [
        PROMPTS[:1],
        PROMPTS[1:],
        PROMPTS[1:2],
    ]
    for number in (2, 0, 1):
        results[number].rollback()
        edits[number].rollback()
        assert same_bits(logits(fresh, TEXTS), logits(model, TEXTS))
    assert scoped_memory(fresh) is None


def test_further_edits_are_made_beside_loaded_ones(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    fresh = toy_model("llama")
    load(folder, fresh)
    more = {"prompt": "water boils at", "target_new": "Oslo"}
    felt = logits(fresh, TEXTS)
    result = editor_of(fresh).edit(more)
    editor_of(model).edit(more)
    both = [*TEXTS, more["prompt"]]
    assert same_bits(logits(fresh, both), logits(model, both))
    result.rollback()
    assert same_bits(logits(fresh, TEXTS), felt)


def test_a_further_edit_is_refused_where_the_blocks_below_have_changed_since(
    saved: tuple[Any, Path],
) -> None:
    fresh = toy_model("llama")
    load(saved[1], fresh)
    with torch.no_grad():
        fresh.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(UpdateError, match="have changed"):
        editor_of(fresh).edit({"prompt": "water boils at", "target_new": "Oslo"})


def test_the_handles_of_loaded_edits_hold_no_rows(saved: tuple[Any, Path]) -> None:
    fresh = toy_model("llama")
    edits = load(saved[1], fresh)
    for entry in (entry for edit in edits for entry in edit.entries):
        assert entry._record.updates == {}
        with pytest.raises(UpdateError, match="not kept"):
            entry.again()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flipped(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[-5] ^= 1
    path.write_bytes(bytes(found))


def other_target(path: Path) -> None:
    path.write_text(path.read_text().replace("Rome and Oslo", "Oslo and Rome"))


def newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("scoped.json", cut),
        ("scoped.json", other_target),
        ("scoped.json", newer),
        ("scoped.json", Path.unlink),
        ("keys.safetensors", cut),
        ("keys.safetensors", flipped),
        ("rows-00001.safetensors", cut),
        ("rows-00001.safetensors", flipped),
        ("rows-00001.safetensors", Path.unlink),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused(
    name: str, harm: Callable[[Path], None], saved: tuple[Any, Path]
) -> None:
    harm(saved[1] / name)
    fresh = toy_model("llama")
    with pytest.raises(EditError, match=name):
        load(saved[1], fresh)
    assert Ledger.of(fresh).is_empty
    assert scoped_memory(fresh) is None


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "model.layers.4.mlp.up_proj"])
def test_another_base_is_refused(name: str, saved: tuple[Any, Path]) -> None:
    fresh = toy_model("llama")
    with torch.no_grad():
        fresh.get_submodule(name).weight[0, 0] += 1
    with pytest.raises(EditError, match="other bits"):
        load(saved[1], fresh)
    assert scoped_memory(fresh) is None
    load(saved[1], fresh, check=False)
    assert len(scoped_memory(fresh)) == 4


def test_another_architecture_and_another_tokenizer_are_refused(saved: tuple[Any, Path]) -> None:
    with pytest.raises(EditError, match="another model"):
        load(saved[1], toy_model("gpt2"))
    fresh, other = toy_model("llama"), toy_tokenizer()
    other.decode = lambda ids, **_: " ".join(map(str, ids))  # type: ignore[method-assign]
    with pytest.raises(EditError, match="another tokenizer"):
        load_scoped(saved[1], fresh, other)
    assert scoped_memory(fresh) is None


def decided_by(model: Any, scope: Any) -> Any:
    """An editor of `model` whose edits `scope` decides."""
    editor = editor_of(model)
    editor.scoping = replace(editor.scoping, scope=scope)
    editor._proposer._scoping = editor.scoping
    return editor


def test_a_model_whose_edits_another_scope_decides_takes_none(saved: tuple[Any, Path]) -> None:
    fresh = toy_model("llama")
    other = replace(parts("llama")[1], scale=2.0)
    decided_by(fresh, other).edit({"prompt": "my name is", "target_new": "Oslo"})
    felt = logits(fresh, TEXTS)
    with pytest.raises(UpdateError, match="another scope"):
        load(saved[1], fresh)
    assert same_bits(logits(fresh, TEXTS), felt)
    assert len(scoped_memory(fresh)) == 1


@pytest.mark.parametrize("k", [0, 10, 20])
def test_loading_that_breaks_off_leaves_the_model_as_it_was(
    k: int, saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = toy_model("llama")
    editor_of(fresh).edit({"prompt": "my name is", "target_new": "Oslo"})
    felt = logits(fresh, [*TEXTS, "my name is"])
    calls, commit = iter(range(1000)), ScopedStaged.commit

    def broken(staged: ScopedStaged) -> None:
        commit(staged)
        if next(calls) == k:
            raise KeyboardInterrupt("broken on purpose")

    monkeypatch.setattr(ScopedStaged, "commit", broken)
    with pytest.raises(KeyboardInterrupt):
        load(saved[1], fresh)
    assert same_bits(logits(fresh, [*TEXTS, "my name is"]), felt)
    assert len(scoped_memory(fresh)) == 1


def test_a_folder_is_written_whole_or_not_at_all(
    saved: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    with pytest.raises(EditError, match="not empty"):
        save_scoped(model, folder)
    with pytest.raises(EditError, match="no scoped edits"):
        save_scoped(toy_model("llama"), tmp_path / "none")

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(scoped_files, "_digest", broken)
    with pytest.raises(OSError, match="full"):
        save_scoped(model, tmp_path / "more")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["edits"]


@pytest.mark.parametrize("kind", ["untrained", "with a relation head"])
def test_edits_with_a_scope_of_another_kind_are_saved_too(kind: str, tmp_path: Path) -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    scope = untrained_scope(model, tokenizer_for(model), targets, lines=TEXTS)
    if kind != "untrained":
        scope = parts("llama")[1]
        head = torch.eye(len(scope.mean))
        scope = replace(scope, relation=head, relation_scale=1.5, relation_shift=0.25)
    decided_by(model, scope).edit(THREE)
    folder = save_scoped(model, tmp_path / "edits")
    fresh = toy_model("llama")
    load(folder, fresh)
    found = scoped_memory(fresh).scope
    assert found.fingerprint() == scope.fingerprint()
    assert found.thresholds == scope.thresholds
    for name, value in vars(scope).items():
        assert not torch.is_tensor(value) or same_bits(getattr(found, name), value), name
    assert same_bits(logits(fresh, TEXTS), logits(model, TEXTS))
