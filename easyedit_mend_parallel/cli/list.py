"""`mend-parallel list`: lists the edits of a journal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyedit_mend_parallel.cli.where import asked, existing


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A journal.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the edits of a journal, in the order in which they are applied to a model."""
    journal = existing(folder)
    edits = [(entry, journal.edit(entry.number)) for entry in journal.entries]
    if as_json:
        found = [
            {
                **asdict(entry),
                "base": edit.about["base"]["model"]["id"],
                "requests": [
                    {"prompt": one.prompt, "target_new": one.target_new} for one in edit.requests
                ],
                "rows": edit.rows,
                "norms": edit.norms,
            }
            for entry, edit in edits
        ]
        print(json.dumps(found, indent=2))
        return
    table = Table("edit", "state", "requests", "rows", "size ‖ΔW‖", "added")
    for entry, edit in edits:
        state = "applied" if entry.applied else "undone"
        if entry.squashed_into is not None:
            state = f"in edit {entry.squashed_into}"
        table.add_row(
            str(entry.number),
            state,
            escape(asked(edit)),
            str(edit.rows),
            f"{sum(norm**2 for norm in edit.norms.values()) ** 0.5:.3g}",
            entry.added,
            style=None if entry.applied else "dim",
        )
    Console().print(table)
