"""Past `scope_memory` the rows of the oldest requests lie in files, and nothing else is different:
which updates apply, how edits are undone, and how a model is saved."""

from __future__ import annotations

import copy
import gc
import itertools
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scoped_toys import THREE, base_logits, editor_of, logits
from toys import same_bits, tokenizer_for, toy_model

from easyedit_mend_parallel import UpdateError, load_scoped, rollback_all, save_scoped
from easyedit_mend_parallel.weights import row_keeper, slabs
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.stores.scoped import ScopedStaged, scoped_memory

WORDS = "red green blue town sea cat mat sun river east west stone".split()  # noqa: SIM905
MANY = [{"prompt": f"{word} stands by the", "target_new": "Rome and Oslo"} for word in WORDS]
PROMPTS = [request["prompt"] for request in MANY]
TEXTS = [*PROMPTS, "my name is"]


def edited(limit: int | str, asked: Any = MANY) -> tuple[Any, list[Any]]:
    """A model with one edit for each request, and their results."""
    model = toy_model("llama")
    editor = editor_of(model, scope_memory=limit)
    return model, [editor.edit(request) for request in asked]


@pytest.fixture(scope="module")
def room() -> int:
    """What all keys and about a quarter of the rows take."""
    memory = scoped_memory(edited("1GiB")[0])
    rows = memory.bytes - memory.key_bytes
    return int(memory.key_bytes + rows // 4)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's temporary files are."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def files(folder: Path) -> list[Path]:
    gc.collect()
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("at_once", [False, True])
def test_what_lies_in_a_file_is_felt_to_the_bit_and_memory_is_bounded(
    at_once: bool, room: int, scratch: Path
) -> None:
    asked = [MANY] if at_once else MANY
    plain, _ = edited("1GiB", asked)
    assert not files(scratch)
    model, _ = edited(room, asked)
    memory = scoped_memory(model)
    assert memory.bytes <= room
    assert memory.kept.bytes_in_files > 2 * memory.kept.bytes
    assert files(scratch)
    for _ in range(2):
        assert same_bits(logits(model, TEXTS), logits(plain, TEXTS))
    assert not same_bits(logits(model, TEXTS), base_logits(model, TEXTS))


@pytest.mark.parametrize("order", ["oldest first", "newest first", "every third"])
def test_edits_come_out_of_files_in_any_order_and_leave_the_others(
    order: str, room: int, scratch: Path
) -> None:
    model, results = edited(room)
    plain, others = edited("1GiB")
    numbers = {
        "oldest first": range(12),
        "newest first": range(11, -1, -1),
        "every third": [n for k in range(3) for n in range(k, 12, 3)],
    }[order]
    for number in numbers:
        results[number].rollback()
        others[number].rollback()
        assert same_bits(logits(model, TEXTS), logits(plain, TEXTS))
    assert scoped_memory(model) is None
    assert not files(scratch)


def test_a_replaced_request_comes_back_from_its_file(room: int) -> None:
    model, _ = edited(room)
    felt = logits(model, TEXTS)
    again = editor_of(model, scope_memory=room).edit({**MANY[0], "target_new": "the sea"})
    assert not same_bits(logits(model, TEXTS), felt)
    again.rollback()
    assert same_bits(logits(model, TEXTS), felt)


def test_the_room_of_edits_that_were_taken_out_is_given_back(scratch: Path) -> None:
    model = toy_model("llama")
    editor = editor_of(model, scope_memory="1GiB")
    results = [editor.edit(MANY[:6]), *(editor.edit(request) for request in MANY[6:])]
    memory = scoped_memory(model)
    memory.keep_within(memory.key_bytes)
    assert memory.kept.bytes == 0
    full, size = memory.kept.bytes_in_files, sum(path.stat().st_size for path in files(scratch))
    felt = logits(model, PROMPTS[6:8])
    for result in (results[0], *results[3:]):
        result.rollback()
    assert memory.kept.bytes_in_files <= full / 2
    assert sum(path.stat().st_size for path in files(scratch)) <= size / 2
    assert same_bits(logits(model, PROMPTS[6:8]), felt)


def test_a_file_that_cannot_be_written_anew_stays(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, results = edited(room)
    felt = logits(model, PROMPTS[-1:])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    for result in results[:-1]:
        result.rollback()
    assert same_bits(logits(model, PROMPTS[-1:]), felt)
    assert len(scoped_memory(model)) == 1


def test_an_edit_is_refused_where_no_file_can_be_written(
    room: int, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    model, results = edited(room, MANY[:8])
    before, felt = files(scratch), logits(model, TEXTS)
    taken = scoped_memory(model).bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UpdateError, match="raise scope_memory"):
        editor_of(model, scope_memory=room // 2).edit(MANY[8:])
    assert same_bits(logits(model, TEXTS), felt)
    assert (len(scoped_memory(model)), scoped_memory(model).bytes) == (8, taken)
    assert files(scratch) == before
    assert len(results) == 8


def test_keys_that_exceed_the_memory_alone_are_refused() -> None:
    model, _ = edited("1GiB", THREE)
    felt, taken = logits(model, TEXTS), scoped_memory(model).key_bytes
    with pytest.raises(UpdateError, match="keys of the scoped edits"):
        editor_of(model, scope_memory=taken + 1).edit(MANY[0])
    assert same_bits(logits(model, TEXTS), felt)


@pytest.mark.parametrize("k", [0, 4, 8])
def test_an_edit_that_breaks_off_leaves_what_was_there(
    k: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = edited(room, MANY[:8])
    felt, calls, commit = logits(model, TEXTS), itertools.count(), ScopedStaged.commit

    def broken(staged: ScopedStaged) -> None:
        commit(staged)
        if next(calls) == k:
            raise KeyboardInterrupt("broken on purpose")

    monkeypatch.setattr(ScopedStaged, "commit", broken)
    with pytest.raises(KeyboardInterrupt):
        editor_of(model, scope_memory=room).edit(MANY[8:])
    assert same_bits(logits(model, TEXTS), felt)
    assert len(scoped_memory(model)) == 8


def test_a_copy_has_the_files_for_itself_and_they_go_with_the_last_model(
    room: int, scratch: Path
) -> None:
    model, results = edited(room)
    twin, felt = copy.deepcopy(model), logits(model, TEXTS)
    for result in results[:-1]:
        result.rollback()
    assert same_bits(logits(twin, TEXTS), felt)
    del model, results, result
    gc.collect()
    assert same_bits(logits(twin, TEXTS), felt)
    del twin
    assert not files(scratch)


def storages(model: Any) -> set[int]:
    """Where the rows that are in memory lie."""
    memory = scoped_memory(model)
    found = [memory.rows(request, name) for request in memory.requests for name in memory.targets]
    return {
        part.untyped_storage().data_ptr() for rows in found for part in (rows.keys, rows.values)
    }


def test_rows_in_memory_share_one_block_and_a_copy_has_its_own() -> None:
    model, _ = edited("1GiB")
    assert len(storages(model)) == 1
    twin, felt = copy.deepcopy(model), logits(model, TEXTS)
    assert len(storages(twin)) == 1
    assert not storages(twin) & storages(model)
    rollback_all(model)
    assert same_bits(logits(twin, TEXTS), felt)


def test_a_block_is_freed_with_the_last_of_its_rows() -> None:
    model, results = edited("1GiB", MANY[:3])
    memory = scoped_memory(model)
    block = weakref.ref(memory.kept._slabs._last)
    memory.keep_within(memory.key_bytes)
    memory.kept._slabs._last = None
    assert memory.kept.bytes == 0
    del results
    gc.collect()
    assert block() is None


def test_the_memory_of_rows_that_were_taken_out_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slabs, "SLAB", 6000)
    monkeypatch.setattr(row_keeper, "SLAB", 6000)
    model, results = edited("1GiB")
    full, felt = len(storages(model)), logits(model, PROMPTS[::4])
    blocks = {weakref.ref(kept._in_slab[0].slab) for kept in scoped_memory(model).kept._in_memory}
    for number, result in enumerate(results):
        if number % 4:
            result.rollback()
    assert full > 3
    assert len(storages(model)) < full / 2
    gc.collect()
    assert not [block for block in blocks if block() is not None]
    assert same_bits(logits(model, PROMPTS[::4]), felt)
    results[1].entry.again()
    assert not same_bits(logits(model, PROMPTS[1]), base_logits(model, PROMPTS[1]))


def test_rows_larger_than_a_block_get_one_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = edited("1GiB")
    monkeypatch.setattr(slabs, "SLAB", 700)
    model, _ = edited("1GiB")
    assert len(storages(model)) > 3
    assert same_bits(logits(model, TEXTS), logits(plain, TEXTS))


def test_what_is_kept_of_an_edit_that_nobody_holds_has_no_rows() -> None:
    model, results = edited("1GiB", MANY[:3])
    del results
    gc.collect()
    editor_of(model).edit(MANY[3])
    kept = Ledger.of(model)._settled
    assert kept
    for staged in kept:
        about = staged._about
        assert sum(part.untyped_storage().nbytes() for part in (about.keys, about.values)) == 0


def test_edits_in_files_are_saved_and_loaded_into_files(room: int, tmp_path: Path) -> None:
    model, _ = edited(room)
    folder = save_scoped(model, tmp_path / "edits")
    fresh = toy_model("llama")
    edits = load_scoped(folder, fresh, tokenizer_for(fresh), scope_memory=room)
    memory = scoped_memory(fresh)
    assert memory.bytes <= room
    assert memory.kept.bytes_in_files > memory.kept.bytes
    assert same_bits(logits(fresh, TEXTS), logits(model, TEXTS))
    edits[0].rollback()
    assert same_bits(logits(fresh, TEXTS[1:]), logits(model, TEXTS[1:]))
    assert same_bits(logits(fresh, PROMPTS[0]), base_logits(model, PROMPTS[0]))


def test_rollback_all_removes_the_files(room: int, scratch: Path) -> None:
    model, results = edited(room)
    rollback_all(model)
    assert same_bits(logits(model, TEXTS), base_logits(model, TEXTS))
    del results
    assert not files(scratch)


def test_a_file_that_is_gone_is_named(room: int, scratch: Path) -> None:
    model, _ = edited(room)
    for path in files(scratch):
        path.unlink()
    with pytest.raises(UpdateError, match="cannot be read from"):
        logits(model, PROMPTS[0])
