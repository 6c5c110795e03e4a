"""`mend-parallel plugins`: which installed packages offer methods and weight stores."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the plugins that this package finds, and what each offers."""
    from easyedit_mend_parallel.plugins import plugin_manager

    manager = plugin_manager()
    found = [
        {
            "plugin": manager.get_name(plugin) or "?",
            "offers": sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()),
        }
        for plugin in manager.get_plugins()
    ]
    found.sort(key=lambda one: str(one["plugin"]))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("plugin", "offers")
    for one in found:
        table.add_row(str(one["plugin"]), ", ".join(one["offers"]))
    Console().print(table)
