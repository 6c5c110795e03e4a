"""Where the disk has no room, nothing is left half written: what was there is as it was, the error
is the package's and names the file, and with room the same call works. The disk is full by a limit
of the process on the size of a file."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from edited import FACTS, edited, editor_of
from scoped_toys import THREE
from scoped_toys import editor_of as scoped_editor
from toys import REQUESTS, tokenizer_for, toy_model, toy_network

from easyedit_mend_parallel import (
    FileError,
    Journal,
    export_peft,
    load_edit,
    save_archive,
    save_edited,
    save_scoped,
)
from easyedit_mend_parallel.files import written_whole

LIMIT = 512
"""Bytes that a file may have while the disk is full."""


@contextmanager
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def of_archive(suffix: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        model = toy_model("llama")
        network = toy_network(model, tokenizer_for(model))
        return lambda: save_archive(folder / f"archive{suffix}", network)

    return make


def of_saved_edit(folder: Path) -> Any:
    model, result = edited()
    return lambda: (result.save(folder / "edit.safetensors"), model)


def of_peft(folder: Path) -> Any:
    _model, result = edited()
    path = result.save(folder / "edit.safetensors")
    return lambda: export_peft(load_edit(path), folder / "adapter")


def of_checkpoint(folder: Path) -> Any:
    model = toy_model("llama")
    editor_of(model).edit(FACTS)
    return lambda: save_edited(model, folder / "model")


def of_scopes(folder: Path) -> Any:
    model = toy_model("llama")
    scoped_editor(model).edit(THREE)
    return lambda: save_scoped(model, folder / "scoped")


def of_journal(folder: Path) -> Any:
    model = toy_model("llama")
    journal = Journal(folder / "journal").apply_to(model)
    editor = editor_of(model)
    journal.add(editor.edit(REQUESTS[0]))
    result = editor.edit(REQUESTS[1])
    return lambda: journal.add(result)


def of_squash(folder: Path) -> Any:
    model = toy_model("llama")
    journal = Journal(folder / "journal").apply_to(model)
    editor = editor_of(model, sequence="add")
    for request in REQUESTS:
        journal.add(editor.edit(request))
    return lambda: journal.squash(2)


WRITERS = {
    "archive": of_archive(".safetensors"),
    "archive in EasyEdit's format": of_archive(".pt"),
    "saved edit": of_saved_edit,
    "PEFT adapter": of_peft,
    "checkpoint": of_checkpoint,
    "scoped edits": of_scopes,
    "journal": of_journal,
    "squashed journal": of_squash,
}


@pytest.mark.parametrize("again", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there(kind: str, again: bool, tmp_path: Path) -> None:
    write = WRITERS[kind](tmp_path)
    if again:
        if kind not in ("archive", "archive in EasyEdit's format", "saved edit"):
            pytest.skip("a folder is written once")
        write()
    before = content(tmp_path)

    with full_disk(), pytest.raises(FileError, match=r"cannot be written \(.*(large|File)"):
        write()

    assert content(tmp_path) == before
    write()
    assert content(tmp_path) != before or again


def test_an_error_about_another_file_is_not_blamed_on_the_one_that_is_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    with (
        pytest.raises(FileNotFoundError, match="missing"),
        written_whole(tmp_path / "here" / "file"),
    ):
        (tmp_path / "elsewhere" / "missing").read_bytes()
    assert not content(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, but for locks, which stay."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
