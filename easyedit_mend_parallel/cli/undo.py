"""`mend-parallel undo`: removes an edit from a journal's applied edits, or applies it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from easyedit_mend_parallel.cli.where import existing


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A journal.")],
    number: Annotated[
        int | None, typer.Argument(help="Number of the edit (default: the last applied one).")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Apply edit NUMBER again instead, as the last one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Remove an edit from a journal's applied edits. Its file stays, so it can be applied again.

    A model to which the journal is applied later gets only the remaining edits, as if this edit had
    never been made.
    """
    journal = existing(folder)
    if back:
        if number is None:
            raise typer.BadParameter("--back needs the NUMBER of an edit")
        journal.reapply(number)
    else:
        number = number if number is not None or not journal.applied else journal.applied[-1]
        journal.undo(number)
    if as_json:
        print(json.dumps({"number": number, "applied": journal.applied}))
        return
    left = ", ".join(map(str, journal.applied)) or "none"
    print(f"edit {number} is {'applied again' if back else 'undone'}; applied: {left}")
