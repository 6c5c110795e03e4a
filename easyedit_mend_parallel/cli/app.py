"""Collects the commands, and turns errors into one message and an exit code.

Does not know what a command does. Modules of commands import heavy packages (torch, transformers)
inside their functions, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from easyedit_mend_parallel.cli import (
    apply,
    calibrate,
    check,
    demo,
    edit,
    evaluate,
    export,
    list,
    plugins,
    run,
    show,
    train,
    undo,
)
from easyedit_mend_parallel.cli.where import SILENT_SECONDS
from easyedit_mend_parallel.errors import MendParallelError

OK, FAILED, USAGE, BELOW, LOST, INTERRUPTED = 0, 1, 2, evaluate.BELOW, edit.LOST, 130
"""Exit codes: success; an error of this package; wrong arguments (click's own code); a required
figure was not reached (`evaluate`); a request does not hold (`edit`); interrupted, with nothing
half done."""

app = typer.Typer(
    name="mend-parallel",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        from easyedit_mend_parallel import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _all_commands(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """Edit knowledge in language models that do not fit on one device."""
    if context.invoked_subcommand != "run":  # a script's progress bars are its own affair
        os.environ.setdefault("TQDM_DELAY", str(SILENT_SECONDS))  # those of transformers


app.command("calibrate")(calibrate.command)
app.command("check")(check.command)
app.command("edit")(edit.command)
app.command("evaluate")(evaluate.command)
app.command("list")(list.command)
app.command("undo")(undo.command)
app.command("apply")(apply.command)
app.command("export")(export.command)
app.command("show")(show.command)
app.command("demo")(demo.command)
app.command("run", context_settings=run.CONTEXT)(run.command)
app.command("plugins")(plugins.command)
app.command("train")(train.command)


def main() -> None:
    """The console script. An error of this package is one message on stderr, and exit code 1."""
    try:
        app()
    except MendParallelError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}:[/] ", end="")
        print(error, file=sys.stderr)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
