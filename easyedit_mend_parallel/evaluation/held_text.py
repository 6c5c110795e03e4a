"""Held-out text, whose perplexity is measured before and after edits: one line per paragraph.

It was written for this project. It is neither training data nor preserved text.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from easyedit_mend_parallel.errors import DataError

SHIPPED = "held_text.txt"


def held_text(path: str | Path | None = None) -> tuple[str, ...]:
    """The lines of a text file, empty ones left out; None: those that ship with this package.

    Raises DataError for a file that cannot be read or holds no text.
    """
    try:
        if path is None:
            shipped = resources.files("easyedit_mend_parallel.evaluation").joinpath(SHIPPED)
            text = shipped.read_text(encoding="utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read held text from {path}: {error}") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise DataError(f"there is no line of text in {path}")
    return lines
