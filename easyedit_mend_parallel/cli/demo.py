"""`mend-parallel demo`: a real model with its blocks in different places, edited through EasyEdit.

Knows the demo's options and nothing of what it does.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import typer


def command(
    placement: Annotated[
        str | None,
        typer.Option(
            help="Where the blocks lie: two-gpus, gpu+cpu, cpu+disk, all-disk or simulated. "
            "Default: the best that this machine has, then simulated.",
        ),
    ] = None,
) -> None:
    """Edit facts that SmolLM2-135M knows, with its blocks in different places. Needs EasyEdit."""
    from easyedit_mend_parallel.demo.__main__ import main

    warnings.simplefilter("ignore")  # of EasyEdit and what it imports
    raise typer.Exit(main([] if placement is None else ["--placement", placement]))
