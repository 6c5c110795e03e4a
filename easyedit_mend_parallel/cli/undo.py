"""`mend-parallel undo`: an edit of a journal taken out, or put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from easyedit_mend_parallel.cli.where import existing


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A journal.")],
    number: Annotated[
        int | None, typer.Argument(help="Which edit (default: the last that is applied).")
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="Put edit NUMBER back instead, as the last one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Take an edit out of a journal; its file stays, and it can be put back.

    The next model that the journal is put onto gets the edits that are left, from the base: as if
    the edit had never been made.
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
