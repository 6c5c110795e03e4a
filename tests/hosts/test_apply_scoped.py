"""In EasyEdit, scoped edits run through with their metrics, come off by every way that EasyEdit
restores, and stay each by itself where it keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host_toys import ASKED, KEPT, UNDONE
from scoped_toys import LINES, base_logits, logits
from toys import (
    REQUESTS,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

import easyedit_mend_parallel as ours
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory

SUBJECTS = ["France", "Hamlet", "old town"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes its logs where it is


def base_editor(folder: Path) -> Any:
    from easyeditor import BaseEditor

    model = toy_model("llama")
    tokenizer = tokenizer_for(model)
    archive = ours.save_archive(folder / "a.safetensors", toy_network(model, tokenizer))
    (folder / "text.txt").write_text("\n".join(LINES))
    hparams = toy_hparams(
        toy_targets(model),
        archive=str(archive),
        apply="scoped",
        device="cpu",
        aggregate_options={"preserved_text": str(folder / "text.txt")},
    )
    hparams.model_name = (model, tokenizer)
    return BaseEditor.from_hparams(hparams)


def test_edit_measures_and_takes_the_edits_out_again(tmp_path: Path) -> None:
    editor = base_editor(tmp_path)
    before, plain = weights(editor.model), logits(editor.model, "who wrote Hamlet")
    metrics, edited, _ = editor.edit(**ASKED, subject=SUBJECTS, **UNDONE)
    assert len(metrics) == len(REQUESTS)
    assert all("rewrite_acc" in one["post"] for one in metrics)
    assert scoped_memory(edited) is None
    assert same_bits(logits(edited, "who wrote Hamlet"), plain)
    assert_unchanged(edited, before)


def test_edits_that_are_kept_stay_each_by_itself(tmp_path: Path) -> None:
    editor = base_editor(tmp_path)
    before = weights(editor.model)
    _, edited, _ = editor.edit(**ASKED, subject=SUBJECTS, **KEPT)
    memory = scoped_memory(edited)
    assert memory is not None
    assert [request.prompt for request in memory.requests] == ASKED["prompts"]
    for prompt in ASKED["prompts"]:
        assert not same_bits(logits(edited, prompt), base_logits(edited, prompt))
    assert_unchanged(edited, before)
    ours.rollback_all(edited)
    assert scoped_memory(edited) is None
