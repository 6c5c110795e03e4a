"""What can be said of shell that is not run: its commands exist, and ours have the subcommands,
options, targets and scripts that it names."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from documented.blocks import ROOT, Block

BUILT_IN = ("cd", "export", "source", "set")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def problems(block: Block) -> list[str]:
    """What is wrong in `block`, each with its line."""
    found = []
    for number, line in _lines(block):
        for words in _commands(line):
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                found += [f"{block.page}:{number}: {text}" for text in _in_command(words)]
    return found


def _commands(line: str) -> list[list[str]]:
    """The words of each command of a line, which `&&`, `|` and the like part."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    words.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("&|;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def _lines(block: Block) -> Iterator[tuple[int, str]]:
    """Each line of the block with its number; one that ends in a backslash with those after it."""
    begun, start = "", 0
    for number, line in enumerate(block.code.splitlines(), block.line):
        start = start if begun else number
        begun += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield start, begun
            begun = ""


def _in_command(words: list[str]) -> Iterator[str]:
    command, *arguments = words
    command = command.removeprefix(".venv/bin/")  # what `make` installs
    if command not in BUILT_IN and shutil.which(command, path=PATH) is None:
        yield f"there is no command {command}"
    elif command == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in arguments if "=" not in word and not word.startswith("-")]
        yield from (f"make has no target {word}" for word in named if word not in targets)
    elif command == "mend-parallel":
        yield from _in_cli(arguments)
    elif command in ("python", "torchrun"):
        yield from _in_program(arguments)


def _in_cli(arguments: list[str]) -> Iterator[str]:
    import typer

    from easyedit_mend_parallel.cli.app import app

    command = typer.main.get_command(app)
    for word in arguments:
        subcommands = getattr(command, "commands", None)  # typer carries a click of its own
        if subcommands is not None and not word.startswith("-"):
            if word not in subcommands:
                yield f"mend-parallel has no command {word}"
                return
            command = subcommands[word]
        elif word.startswith("-"):
            option = word.partition("=")[0]
            known = [name for each in command.params for name in each.opts + each.secondary_opts]
            if option not in [*known, "--help"]:
                yield f"mend-parallel {command.name} has no option {option}"
        elif word.endswith(".py") and not command.context_settings.get(
            "allow_interspersed_args", True
        ):
            return  # what follows the name of a script is the script's


def _in_program(arguments: list[str]) -> Iterator[str]:
    """`python` and `torchrun`: the script or module exists, and its --help names the options."""
    named = next((word for word in arguments if word.endswith(".py")), None)
    if "--no-python" in arguments:  # torchrun, of a command
        yield from _in_command(arguments[arguments.index("--no-python") + 1 :])
        return
    if "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        start, rest = ["-m", module], arguments[arguments.index("-m") + 2 :]
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            yield f"there is no module {module}"
            return
    elif named is None or not (ROOT / named).is_file():
        if named is not None and named.startswith(("scripts/", "tests/", "docs/")):
            yield f"there is no script {named}"
        return
    else:
        start, rest = [str(ROOT / named)], arguments[arguments.index(named) + 1 :]
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    said = re.findall(r"--[\w-]+", _help(tuple(start))) if options else []
    yield from (f"{start[-1]} has no option {name}" for name in options if name not in said)


@cache
def _help(start: tuple[str, ...]) -> str:
    command = [sys.executable, *start, "--help"]
    modules = os.environ | {"PYTHONPATH": str(ROOT / "tests")}  # the benchmarks lie there
    shown = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=modules
    )
    return shown.stdout + shown.stderr
