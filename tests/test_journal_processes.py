"""Two processes with one journal are never mixed, and a killed one leaves the journal before or
after its change."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edited import FACTS, editor_of
from toys import toy_model

from easyedit_mend_parallel import EditError, Journal, load_edit

KILLS = int(os.environ.get("KILLS", "20"))


def with_one_edit(folder: Path) -> Journal:
    model = toy_model("llama")
    journal = Journal(folder).apply_to(model)
    journal.add(editor_of(model).edit(FACTS[0]))
    return journal


def forked(act: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    return child


def assert_whole(folder: Path) -> list[int]:
    """Every edit that the index names is there; returns their numbers."""
    entries = Journal(folder).entries
    for entry in entries:
        load_edit(folder / entry.file)
    return [entry.number for entry in entries]


def test_a_journal_that_another_process_changed_is_refused_and_that_ones_edit_stays(
    tmp_path: Path,
) -> None:
    model, other = toy_model("llama"), toy_model("llama")
    mine, theirs = Journal(tmp_path).apply_to(model), Journal(tmp_path).apply_to(other)
    theirs.add(editor_of(other).edit(FACTS[0]))
    kept = load_edit(tmp_path / "0001.safetensors").requests

    result = editor_of(model).edit(FACTS[1])
    with pytest.raises(EditError, match="changed by another process"):
        mine.add(result)

    assert load_edit(tmp_path / "0001.safetensors").requests == kept
    assert assert_whole(tmp_path) == [1]


def test_processes_that_write_at_the_same_time_are_refused_or_one_after_the_other(
    tmp_path: Path,
) -> None:
    journal = with_one_edit(tmp_path)
    edit = journal.edit(1)
    start = time.monotonic() + 0.2

    def write() -> None:
        opened = Journal(tmp_path)
        time.sleep(max(0.0, start - time.monotonic()))
        for _ in range(10):
            try:
                with opened._locked(), opened._kept(edit) as entry:
                    opened._write([*opened._entries, entry])
            except EditError:
                opened = Journal(tmp_path)

    for child in [forked(write) for _ in range(3)]:
        os.waitpid(child, 0)

    numbers = assert_whole(tmp_path)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10


def test_a_process_that_is_killed_leaves_the_journal_before_or_after_its_change(
    tmp_path: Path,
) -> None:
    edit = with_one_edit(tmp_path).edit(1)
    chance = random.Random(0)

    def write() -> None:
        journal = Journal(tmp_path)
        while True:
            with journal._kept(edit) as entry:
                journal._write([*journal._entries, entry])
            journal.undo()

    for _ in range(KILLS):
        child = forked(write)
        time.sleep(chance.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        numbers = assert_whole(tmp_path)
        assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 1


def test_a_process_that_is_killed_while_it_saves_leaves_the_old_file_or_the_new_one(
    tmp_path: Path,
) -> None:
    edit = with_one_edit(tmp_path / "journal").edit(1)
    path = edit.write(tmp_path / "edit")
    chance = random.Random(1)

    def write() -> None:
        while True:
            edit.write(path, half=chance.random() < 0.5)

    for _ in range(KILLS):
        child = forked(write)
        time.sleep(chance.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert load_edit(path).requests == edit.requests
