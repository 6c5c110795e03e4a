"""A journal does to its model what it says of its edits, wholly or not at all, and says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import FACTS, editor_of, logits_on_facts
from test_edits import close
from toys import assert_unchanged, toy_model, weights

from easyedit_mend_parallel import EditError, Journal, load_edit
from easyedit_mend_parallel.edits import journal_index
from easyedit_mend_parallel.edits.squashing import squash, squashed_update
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.update import LowRankUpdate


def kept(folder: Path, apply: str = "weight") -> tuple[Any, Journal]:
    """A model with three edits in it, and their journal."""
    model = toy_model("llama")
    journal = Journal(folder).apply_to(model, apply=apply)
    editor = editor_of(model, apply)
    for fact in FACTS:
        journal.add(editor.edit(fact))
    return model, journal


def with_edits(folder: Path, *numbers: int) -> Any:
    """A fresh base with those edits of a journal."""
    model = toy_model("llama")
    for number in numbers:
        load_edit(folder / f"{number:04}.safetensors").apply(model)
    return model


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "journal.json").read_text())
    del index["checksum"]
    return index


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_opened_with_a_fresh_base_it_puts_on_what_is_applied(apply: str, tmp_path: Path) -> None:
    model, journal = kept(tmp_path, apply)
    assert [(e.number, e.applied) for e in journal.entries] == [(1, True), (2, True), (3, True)]
    fresh, seen = toy_model("llama"), []
    again = Journal(tmp_path).apply_to(fresh, progress=seen.append)
    assert close(logits_on_facts(fresh), logits_on_facts(model), 1e-5)
    assert again.entries == journal.entries
    assert seen == [1, 2, 3]


def test_the_last_edit_is_undone_to_the_bit(tmp_path: Path) -> None:
    model = toy_model("llama")
    journal, editor = Journal(tmp_path).apply_to(model), editor_of(model)
    journal.add(editor.edit(FACTS[0]))
    before = weights(model)
    journal.add(editor.edit(FACTS[1]))
    assert journal.undo() == "restored"
    assert_unchanged(model, before)
    assert journal.applied == [1]
    assert Journal(tmp_path).applied == [1]


def test_an_edit_in_the_middle_is_undone_as_if_it_had_never_been(tmp_path: Path) -> None:
    model, journal = kept(tmp_path)
    assert journal.undo(2) == "recomputed"
    assert_unchanged(model, weights(with_edits(tmp_path, 1, 3)))
    assert journal.applied == [1, 3]


def test_an_edit_of_outputs_is_always_restored(tmp_path: Path) -> None:
    model, journal = kept(tmp_path, "output")
    assert journal.undo(2) == "restored"
    assert close(logits_on_facts(model), logits_on_facts(with_edits(tmp_path, 1, 3)), 1e-5)


def test_an_edit_that_is_put_back_goes_on_last_here_and_when_opened_again(tmp_path: Path) -> None:
    model, journal = kept(tmp_path)
    journal.undo(1)
    journal.reapply(1)
    assert journal.applied == [2, 3, 1]
    assert_unchanged(model, weights(with_edits(tmp_path, 2, 3, 1)))
    fresh = toy_model("llama")
    Journal(tmp_path).apply_to(fresh)
    assert_unchanged(fresh, weights(model))


def test_without_a_model_edits_are_marked(tmp_path: Path) -> None:
    kept(tmp_path)
    journal = Journal(tmp_path)
    assert journal.undo(2) == "marked"
    fresh = toy_model("llama")
    Journal(tmp_path).apply_to(fresh)
    assert_unchanged(fresh, weights(with_edits(tmp_path, 1, 3)))
    journal = Journal(tmp_path)
    journal.reapply(2)
    assert journal.applied == [1, 3, 2]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda journal: journal.undo(4), "no edit 4 in .*; its edits: 1, 2, 3"),
        (lambda journal: (journal.undo(2), journal.undo(2)), "edit 2 is not applied"),
        (lambda journal: journal.reapply(1), "edit 1 is applied already"),
        (lambda journal: journal.squash(4, [1]), "fewer than two"),
        (lambda journal: journal.squash(0), "rank is 0"),
        (lambda journal: (journal.undo(1), journal.squash(4, [1, 2])), "1 of the edits"),
        (lambda journal: [journal.undo() for _ in range(4)], "no edit is applied in"),
    ],
)
def test_what_cannot_be_done_is_said(act: Any, message: str, tmp_path: Path) -> None:
    kept(tmp_path)
    with pytest.raises(EditError, match=message):
        act(Journal(tmp_path))


def test_another_base_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    kept(tmp_path)
    other = toy_model("llama", seed=3)
    before = weights(other)
    with pytest.raises(EditError, match="another base model"):
        Journal(tmp_path).apply_to(other)
    assert_unchanged(other, before)


def test_an_edit_without_checksums_is_compared_by_what_else_is_known(tmp_path: Path) -> None:
    _, journal = kept(tmp_path)
    journal.undo(3)
    journal.undo(2)
    edit = journal.edit(1)
    for about in edit.about["base"]["weights"].values():
        del about["base"], about["before"]
    edit.write(tmp_path / "0001.safetensors")
    with pytest.raises(EditError, match=r"another base model .* norms and biases"):
        Journal(tmp_path).apply_to(toy_model("llama", seed=3))
    assert Journal(tmp_path).apply_to(toy_model("llama")).applied == [1]


def test_opening_that_breaks_off_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path)
    (tmp_path / "0003.safetensors").unlink()
    fresh = toy_model("llama")
    before = weights(fresh)
    with pytest.raises(EditError, match=r"there is no edit at .*0003"):
        Journal(tmp_path).apply_to(fresh)
    assert_unchanged(fresh, before)


def test_an_edit_of_a_model_the_journal_does_not_know_is_refused(tmp_path: Path) -> None:
    kept(tmp_path)
    other = toy_model("llama")
    result = editor_of(other).edit(FACTS[0])
    with pytest.raises(EditError, match="another model than the journal"):
        Journal(tmp_path).add(result)
    assert len(Journal(tmp_path).entries) == 3


def test_an_index_that_cannot_be_written_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = kept(tmp_path)
    before, index = weights(model), index_of(tmp_path)

    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(journal_index, "written_whole", full)
    for act in (journal.undo, lambda: journal.undo(1), lambda: journal.squash(4)):
        with pytest.raises(OSError, match="no space"):
            act()
        assert_unchanged(model, before)
        assert index_of(tmp_path) == index
        assert journal.applied == [1, 2, 3]
    monkeypatch.undo()
    assert journal.undo(1) == "recomputed"
    before = weights(model)
    monkeypatch.setattr(journal_index, "written_whole", full)
    with pytest.raises(OSError, match="no space"):
        journal.reapply(1)
    assert_unchanged(model, before)


def test_an_undo_that_fails_in_the_model_is_not_in_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = kept(tmp_path)
    before = weights(model)

    def failing(_: ResidentStaged) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResidentStaged, "undo", failing)
        with pytest.raises(KeyboardInterrupt):
            journal.undo()
    assert_unchanged(model, before)
    assert Journal(tmp_path).applied == journal.applied == [1, 2, 3]
    assert journal.undo() == "restored"


def test_two_who_change_one_journal_do_not_lose_each_others_edits(tmp_path: Path) -> None:
    kept(tmp_path)
    one, other = Journal(tmp_path), Journal(tmp_path)
    one.undo(1)
    with pytest.raises(EditError, match="changed by another process"):
        other.undo(2)
    assert Journal(tmp_path).applied == [2, 3]


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(EditError, match="is no journal"):
        Journal(tmp_path / "other")
    kept(tmp_path / "journal")
    index = tmp_path / "journal" / "journal.json"
    content = index_of(tmp_path / "journal")
    for text, message in (
        ("{", "is damaged"),
        (json.dumps({**content, "format_version": 9}), "another kind or format"),
        (json.dumps({**content, "edits": [{"number": 1}]}), "is damaged"),
        (
            json.dumps({**content, "edits": [{**content["edits"][0], "file": "../../etc/passwd"}]}),
            "outside its folder",
        ),
    ):
        index.write_text(text)
        with pytest.raises(EditError, match=message):
            Journal(tmp_path / "journal")
    assert list((tmp_path / "nowhere").parent.glob("nowhere")) == []
    assert Journal(tmp_path / "nowhere").entries == []
    assert not (tmp_path / "nowhere").exists()


def test_squashed_edits_are_the_nearest_of_their_rank_and_the_error_is_true(tmp_path: Path) -> None:
    _, journal = kept(tmp_path)
    edits = [journal.edit(number) for number in (1, 2, 3)]
    squashed = squash(edits, 4)
    for name, update in squashed.updates.items():
        dense = sum(e.updates[name].values.T @ e.updates[name].keys for e in edits)
        assert isinstance(dense, torch.Tensor)
        sizes = torch.linalg.svdvals(dense.double())
        best = float(sizes[4:].norm() / sizes.norm())
        left = (dense - update.values.T @ update.keys).norm() / dense.norm()
        assert len(update.keys) == 4
        assert squashed.about["squashed"]["errors"][name] == pytest.approx(best, rel=1e-3)
        assert float(left) == pytest.approx(best, rel=1e-3)
    assert [request.prompt for request in squashed.requests] == [f["prompt"] for f in FACTS]


def test_a_rank_that_suffices_costs_nothing(tmp_path: Path) -> None:
    model, journal = kept(tmp_path)
    edit = squash(journal.combined(), 16)  # the width
    assert all(error < 1e-6 for error in edit.about["squashed"]["errors"].values())
    fresh = toy_model("llama")
    edit.apply(fresh)
    assert close(logits_on_facts(fresh), logits_on_facts(model), 1e-4)


def test_more_rows_than_fit_at_once_are_squashed_with_a_true_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("easyedit_mend_parallel.edits.squashing.ROWS_AT_ONCE", 7)
    draw = torch.Generator().manual_seed(0)
    decay = 0.8 ** torch.arange(60)[:, None]
    update = LowRankUpdate(
        decay * torch.randn(60, 24, generator=draw),
        torch.randn(60, 16, generator=draw),
        torch.zeros(60, dtype=torch.long),
    )
    squashed, error = squashed_update(update, 5)
    dense = update.values.T @ update.keys
    left = (dense - squashed.values.T @ squashed.keys).norm() / dense.norm()
    sizes = torch.linalg.svdvals(dense.double())
    best = float(sizes[5:].norm() / sizes.norm())
    assert len(squashed.keys) == 5
    assert float(left) == pytest.approx(error, rel=1e-3)
    assert best * 0.999 <= error < 1.2 * best


def test_a_squash_takes_the_place_of_its_edits_in_the_model(tmp_path: Path) -> None:
    model, journal = kept(tmp_path)
    entry = journal.squash(3, [1, 3])
    assert journal.applied == [2, entry.number] == [2, 4]
    assert {e.number: e.squashed_into for e in journal.entries} == {1: 4, 2: None, 3: 4, 4: None}
    assert_unchanged(model, weights(with_edits(tmp_path, 2, 4)))
    with pytest.raises(EditError, match="edit 1 is part of edit 4"):
        journal.reapply(1)
    assert journal.undo(4) == "restored"
    journal.reapply(1)
    assert_unchanged(model, weights(with_edits(tmp_path, 2, 1)))


def test_a_squash_that_fails_in_the_model_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, journal = kept(tmp_path)
    before = weights(model)
    commit, calls = ResidentStaged.commit, []

    def failing(self: ResidentStaged) -> None:
        calls.append(self)
        commit(self)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResidentStaged, "commit", failing)
        with pytest.raises(KeyboardInterrupt):
            journal.squash(3)
    assert_unchanged(model, before)
    assert Journal(tmp_path).applied == journal.applied == [1, 2, 3]


def test_a_journal_that_holds_nothing_keeps_no_backups_and_says_so(tmp_path: Path) -> None:
    kept(tmp_path)
    model = toy_model("llama")
    before = weights(model)
    journal = Journal(tmp_path).apply_to(model, hold=False)
    journal.add(editor_of(model).edit(FACTS[0]))
    ledger = Ledger.of(model)
    assert len(ledger._records) == 1  # the last; the others are in the base
    assert_unchanged(model, weights(with_edits(tmp_path, 1, 2, 3, 4)))
    for act in (journal.undo, lambda: journal.squash(3)):
        with pytest.raises(EditError, match="hold=False"):
            act()
    with pytest.raises(EditError, match="already has edits"):
        Journal(tmp_path).apply_to(model, hold=False)
    ledger.undo_all()
    (tmp_path / "0003.safetensors").unlink()
    with pytest.raises(EditError, match="there is no edit"):
        Journal(tmp_path).apply_to(model, hold=False)
    assert_unchanged(model, before)
