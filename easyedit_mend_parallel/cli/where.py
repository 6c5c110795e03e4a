"""Shared by the commands for saved edits: finds the edit of a path, and prints requests."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from easyedit_mend_parallel.edits import Journal, SavedEdit

SILENT_SECONDS = 2.0
"""How long work may take before a progress bar shows it."""


def edits_at(path: Path) -> SavedEdit:
    """The edit in a file, or all applied edits of a journal as one. Raises EditError."""
    from easyedit_mend_parallel.edits import load_edit

    return existing(path).combined() if path.is_dir() else load_edit(path)


def existing(folder: Path) -> Journal:
    """The journal in `folder`. Raises EditError if there is none, e.g. for a misspelt path."""
    from easyedit_mend_parallel.edits import Journal
    from easyedit_mend_parallel.errors import EditError

    journal = Journal(folder)
    if not journal.entries:
        raise EditError(f"there is no journal with an edit in {folder}")
    return journal


def progress(quiet: bool) -> Progress:
    """A progress bar on stderr, so that stdout has only results."""
    return Delayed(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )


class Delayed(Progress):
    """A progress bar that appears once its work has taken `SILENT_SECONDS`."""

    def start(self) -> None:
        self._timer = threading.Timer(SILENT_SECONDS, super().start)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()
        if self.live.is_started:
            super().stop()


def asked(edit: SavedEdit, most: int = 2) -> str:
    """An edit's requests, in one line."""
    said = [f"{one.prompt} → {one.target_new.strip()}" for one in edit.requests[:most]]
    rest = len(edit.requests) - most
    return "; ".join(said) + (f"; and {rest} more" if rest > 0 else "")
