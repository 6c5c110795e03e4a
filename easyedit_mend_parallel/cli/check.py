"""`mend-parallel check`: shows the plan of an edit as tables, and each problem on its own line.

Knows how to show a plan; `plan` makes it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from easyedit_mend_parallel.cli.plan import Plan


def command(
    config: Annotated[Path, typer.Argument(help="A hyperparameter file (yaml or json).")],
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="0=20GiB,cpu=30GiB",
            help="Plan for a machine with this much memory instead of this machine.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show, without loading anything, where the model would be placed, what an edit costs, and
    every problem. Exits with 1 if there is a problem."""
    from easyedit_mend_parallel.cli.plan import plan, read_max_memory

    limits = None if max_memory is None else read_max_memory(max_memory)
    found = plan(config, max_memory=limits)
    if as_json:
        print(json.dumps(_as_json(found), indent=2))
    else:
        _show(found, Console())
    raise typer.Exit(1 if found.problems else 0)


def _as_json(found: Plan) -> dict[str, Any]:
    from easyedit_mend_parallel.cli.plan import TOKENS

    about = dataclasses.asdict(found)
    network = about.pop("network")
    return {
        **about,
        "source": str(found.source),
        "network": network and {"place": network[0], "bytes": network[1]},
        "memory": [{**dataclasses.asdict(one), "edit": one.edit} for one in found.memory],
        "tokens": TOKENS,
    }


def _show(found: Plan, console: Console) -> None:
    if found.model:
        console.print(
            f"{escape(found.model)}: {found.architecture}, {found.parameters / 1e6:,.0f} million "
            f"parameters, {found.dtype}",
            highlight=False,
            soft_wrap=True,
        )
        _show_blocks(found, console)
    if found.targets:
        _show_targets(found, console)
    if found.memory:
        _show_memory(found, console)
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    for problem in found.problems:
        console.print(f"[bold red]problem[/] {escape(problem)}", highlight=False, soft_wrap=True)
    many = len(found.problems)
    if many:
        console.print(f"[bold red]{many} problem{'s' if many > 1 else ''}[/]")
    else:
        console.print("[bold green]no problems[/]")


def _show_blocks(found: Plan, console: Console) -> None:
    from easyedit_mend_parallel.cli.plan import label

    places: dict[str, list[str]] = {}
    for module, place in found.device_map.items():
        places.setdefault(label(place), []).append(module or "the whole model")
    for place, modules in places.items():
        ends = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
        count = f" ({len(modules)} modules)" if len(modules) > 1 else ""
        console.print(f"  {place}: {escape(ends)}{count}", highlight=False)


def _show_targets(found: Plan, console: Console) -> None:
    from easyedit_mend_parallel.cli.plan import label

    name = Column("target", overflow="fold")
    table = Table(name, "in × out", "lies on", "computes on", "store", title="Targets")
    for one in found.targets:
        table.add_row(
            one.target.name,
            f"{one.target.in_features} × {one.target.out_features}",
            label(one.place),
            label(one.device),
            one.store,
        )
    console.print(table)


def _show_memory(found: Plan, console: Console) -> None:
    from easyedit_mend_parallel.cli.plan import TOKENS, label

    table = Table(
        "place", "weights", "may take", "backups", "many edits", "network", "rows", title="Memory"
    )
    for one in found.memory:
        table.add_row(
            label(one.place),
            _size(one.weights),
            "" if one.limit is None else _size(one.limit),
            _size(one.backups),
            _size(one.backups_later),
            _size(one.network),
            _size(one.rows),
        )
    console.print(table)
    console.print(
        "backups: copies of the edited weights (edited copies, for weights on disk) while one edit "
        "is in the model; many edits: the maximum with any number of sequential edits. rows: of "
        f"one request of {TOKENS} tokens. Not counted: the memory of the forward pass itself.",
        style="dim",
    )


def _size(size: int) -> str:
    """A size in bytes with a unit; empty for 0."""
    if not size:
        return ""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.3g} {name}"
    return f"{size} B"
