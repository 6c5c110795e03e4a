"""`mend-parallel plugins`: lists installed packages that offer methods and weight stores."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def command(
    methods: Annotated[
        bool,
        typer.Option(
            "--methods", help="Import EasyEdit, and ask each plugin for its methods' names."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the installed plugins, and what each offers."""
    from easyedit_mend_parallel.easyedit.host import find_host
    from easyedit_mend_parallel.plugins.manager import offers
    from easyedit_mend_parallel.weights.stores import KINDS

    found = offers(find_host(import_it=methods))
    if as_json:
        shown = [dataclasses.asdict(one) for one in found]
        print(json.dumps({"plugins": shown, "own_stores": list(KINDS)}, indent=2))
        return
    table = Table("plugin", "package", "methods", "weight stores")
    for one in found:
        known = ", ".join(one.methods) or ("some: see --methods" if one.offers_methods else "")
        stores = "yes, for weights it supports" if one.offers_stores else ""
        table.add_row(
            escape(one.plugin), escape(f"{one.package} {one.version}"), escape(known), stores
        )
    console = Console()
    console.print(table)
    console.print(f"this package's own stores: {', '.join(KINDS)}", highlight=False)
