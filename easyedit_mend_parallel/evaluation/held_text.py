"""Reads held-out text, one paragraph per line, whose perplexity is measured before and after edits.

The text that ships was written for this project. It is neither training data nor preserved text.
Knows no model.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from easyedit_mend_parallel.errors import DataError
from easyedit_mend_parallel.files import text_lines

SHIPPED = "held_text.txt"


def held_text(path: str | Path | None = None) -> tuple[str, ...]:
    """The lines of a text file, without empty ones; with None, those that ship with this package.

    Raises DataError if the file cannot be read or holds no text.
    """
    shipped = resources.files("easyedit_mend_parallel.evaluation").joinpath(SHIPPED)
    return text_lines(shipped if path is None else Path(path), "held-out text", DataError)
