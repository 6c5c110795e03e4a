"""Reads and writes a journal's index: its edits in order, and which of them are applied.

Knows the names of the edits' files, and neither edits nor models.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import with_checksum, without_checksum, written_whole

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
    if not index.exists():
        if _is_used(folder):
            raise EditError(f"{folder} is no journal: it is not empty and has no {INDEX}")
        return 0, []
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["kind"] != KIND or content["format_version"] != FORMAT_VERSION:
            raise EditError(
                f"{index} is of another kind or format than version {FORMAT_VERSION} of a "
                "journal: use the easyedit-mend-parallel that wrote it"
            )
        content = without_checksum(content, KEYS)
        entries = [JournalEntry(**entry) for entry in content["edits"]]
        revision = int(content["revision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EditError(f"{index} is damaged: {type(error).__name__} {error}") from error
    for entry in entries:
        if Path(entry.file).name != entry.file:
            raise EditError(f"{index} names a file outside its folder: {entry.file}")
    return revision, entries


def write_index(folder: Path, revision: int, entries: list[JournalEntry]) -> None:
    """Make `entries` the next revision of the journal, whole or not at all.

    Raises EditError if `revision` is no longer the last one.
    """
    last, _ = read_index(folder)
    if last != revision:
        raise EditError(
            f"the journal {folder} was changed by another process since it was opened: open it "
            "again"
        )
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
