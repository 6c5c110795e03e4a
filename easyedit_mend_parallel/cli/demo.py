"""`mend-parallel demo`: edits a real model, with its blocks in different places, through EasyEdit.

Knows the demo's options, not what it does.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import typer


def command(
    placement: Annotated[
        str | None,
        typer.Option(
            help="Where the blocks are: two-gpus, gpu+cpu, cpu+disk, all-disk or simulated. "
            "Default: the best that this machine supports, then simulated.",
        ),
    ] = None,
) -> None:
    """Edit facts that SmolLM2-135M knows, with its blocks in different places. Needs EasyEdit."""
    from easyedit_mend_parallel.demo.__main__ import main

    warnings.simplefilter("ignore")  # of EasyEdit and what it imports
    raise typer.Exit(main([] if placement is None else ["--placement", placement]))
