"""Reads and writes a journal's index: its edits in order, and which of them are applied.

Knows the names of the edits' files, and neither edits nor models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import (
    parsed_json,
    refuse_irregular,
    with_checksum,
    without_checksum,
    written_whole,
)
from easyedit_mend_parallel.files.forms import instance_of, of_form

INDEX, KIND, FORMAT_VERSION = "journal.json", "journal", 1
KEYS = ("kind", "format_version", "revision", "edits")


@dataclass(frozen=True)
class JournalEntry:
    """One edit in a journal: its `number` (from 1, never reused), its `file`, whether it
    is `applied`, when it was `added` (UTC, ISO 8601), and the number of the edit that it was
    `squashed_into`, if any."""

    number: int
    file: str
    applied: bool
    added: str
    squashed_into: int | None = None


def read_index(folder: Path) -> tuple[int, list[JournalEntry]]:
    """The revision of the journal in `folder` and its edits; 0 and none for a new journal.

    Raises EditError for a folder with other content, and for a damaged index.
    """
    index = folder / INDEX
    try:
        if not index.exists():
            if _is_used(folder):
                raise EditError(f"{folder} is no journal: it is not empty and has no {INDEX}")
            return 0, []
        refuse_irregular(index)
        content = parsed_json(index.read_text(encoding="utf-8"))
        if content["kind"] != KIND or content["format_version"] != FORMAT_VERSION:
            raise EditError(
                f"{index} is of another kind or format than version {FORMAT_VERSION} of a "
                "journal: use the easyedit-mend-parallel that wrote it"
            )
        content = without_checksum(content, KEYS)
        entries = [instance_of(JournalEntry, one, "an edit") for one in content["edits"]]
        revision = of_form(content["revision"], int, "its revision")
    except OSError as error:
        raise EditError(f"{index} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EditError(f"{index} is damaged: {type(error).__name__} {error}") from error
    for entry in entries:
        if Path(entry.file).name != entry.file:
            raise EditError(f"{index} names a file outside its folder: {entry.file}")
    return revision, entries


class FolderLock:
    """Keeps other processes from changing the journal in `folder` meanwhile, where the file system
    can lock folders. May be entered again by the one who has it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._depth = folder, 0

    @contextmanager
    def held(self, revision: int, *, needed: bool) -> Iterator[None]:
        """While the context lasts, the lock is held, if it is `needed`. Waits for another holder.

        Raises EditError if `revision` is no longer the journal's last one.
        """
        if not needed or self._depth:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            with suppress(ImportError, OSError):
                import fcntl  # not on Windows

                fcntl.flock(handle, fcntl.LOCK_EX)
            self._depth = 1
            refuse_changed(self._folder, revision)
            yield
        finally:
            self._depth = 0
            os.close(handle)


@contextmanager
def dropped_if_broken(file: Path, unnamed: Callable[[], bool]) -> Iterator[None]:
    """Remove the file of an edit where the context ends with an exception and it is `unnamed`."""
    try:
        yield
    except BaseException:
        if unnamed():
            file.unlink(missing_ok=True)
        raise


def refuse_changed(folder: Path, revision: int) -> None:
    """Raise EditError if `revision` is no longer the last one of the journal in `folder`."""
    last, _ = read_index(folder)
    if last != revision:
        raise EditError(
            f"the journal {folder} was changed by another process since it was opened: open it "
            "again"
        )


def write_index(folder: Path, revision: int, entries: list[JournalEntry]) -> None:
    """Make `entries` the next revision of the journal, whole or not at all.

    Raises EditError if `revision` is no longer the last one.
    """
    refuse_changed(folder, revision)
    content = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "revision": revision + 1,
        "edits": [asdict(entry) for entry in entries],
    }
    with written_whole(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(with_checksum(content), indent=2) + "\n", encoding="utf-8")


def _is_used(path: Path) -> bool:
    """Whether `folder` has content, other than files of an interrupted write."""
    if not path.is_dir():
        return path.exists()
    return any(not found.name.startswith(".") for found in path.iterdir())
