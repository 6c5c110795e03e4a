"""`mend-parallel export`: saves edits for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from easyedit_mend_parallel.cli.where import edits_at


def command(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A journal (its applied edits), or one edit.")
    ],
    peft: Annotated[
        Path | None, typer.Option(metavar="OUT", help="A new folder for a LoRA adapter.")
    ] = None,
    delta: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="A safetensors file of the matrix added to each weight."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Squash the edits to this rank first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write edits as a PEFT LoRA adapter, or as a plain state-dict delta."""
    from easyedit_mend_parallel.edits import export_delta, export_peft, squash
    from easyedit_mend_parallel.edits.squashing import of_true_rank

    if (peft is None) == (delta is None):
        raise typer.BadParameter("name one of --peft and --delta")
    edit = edits_at(source)
    errors: dict[str, float] = {}
    if rank is not None:
        edit = squash(edit, rank)
        errors = edit.about["squashed"]["errors"]
    if peft is not None:
        edit = of_true_rank(edit)  # as export_peft does; here its error can be shown
        errors = errors or edit.about.get("squashed", {}).get("errors", {})
        written = export_peft(edit, peft)
    else:
        assert delta is not None
        written = export_delta(edit, delta)
    if as_json:
        print(json.dumps({"written": str(written), "rows": edit.rows, "errors": errors}, indent=2))
        return
    print(f"{written}: {len(edit.requests)} request(s), at most {edit.rows} rows for each target")
    if rank is None and errors:
        print(f"  rows that add nothing were dropped, with an error of {max(errors.values()):.0e}")
        return
    for name, error in errors.items():
        print(f"  {name}: squashed with an error of {error:.1%}")
