"""`mend-parallel apply`: applies a journal's edits to their base and saves a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from easyedit_mend_parallel.cli.where import existing, progress


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A journal.")],
    config: Annotated[Path, typer.Argument(help="A hyperparameter file (yaml or json).")],
    out: Annotated[
        Path, typer.Option(metavar="MODEL_DIR", help="A new folder for the edited model.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Load the model that CONFIG names, apply the journal's applied edits to it, and save it as an
    ordinary checkpoint. MODEL_DIR is written whole or not at all."""
    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.edits import Journal, save_edited
    from easyedit_mend_parallel.errors import EditError
    from easyedit_mend_parallel.files import is_free
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams

    hparams = MENDParallelHyperParams.from_hparams(config)
    applied = existing(folder).applied
    if not applied:
        raise EditError(f"no edit is applied in {folder}")
    if not is_free(out):
        raise EditError(f"{out} exists and is not empty: name a new folder")
    if hparams.apply == "scoped":
        raise EditError(
            "a checkpoint cannot hold where an edit applies: set `apply: weight` in CONFIG, or "
            "load the journal onto the base (`Journal(folder).apply_to(model, ...)`)"
        )
    model, tokenizer = load_model(hparams)
    with progress(as_json) as bars:
        bar = bars.add_task("applying edits", total=len(applied))
        Journal(folder).apply_to(
            model,
            apply=hparams.apply,
            hold=False,
            progress=lambda _number: bars.advance(bar),
        )
        bars.add_task("saving", total=None)
        save_edited(model, out, tokenizer)
    if as_json:
        print(json.dumps({"model": str(out), "applied": applied}))
    else:
        print(f"{out}: the base with edit {', '.join(map(str, applied))}")
