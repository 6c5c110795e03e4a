"""Runs EasyEdit's example scripts as they are, with EasyEdit's MEND and with this package, and
writes a table of what came out: that of docs/easyedit.md.

    python scripts/easyedit_examples path/to/EasyEdit [--only PATTERN] [--work FOLDER]

A script runs in a process of its own, up to four times: with EasyEdit's MEND; by `mend-parallel
run`; the same with a yaml file that names MEND_PARALLEL; and that with a device map that puts every
second block on disk. Each process is a fork of this one, which has imported EasyEdit and nothing of
ours.
Data and models are tiny (material.py); outside.py replaces what a CPU without network lacks.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import logging
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cases import CASES, Case
from yamls import MIXED_MAP, editing_yaml, locality_cache, training_yaml

HERE = Path(__file__).resolve().parent
WAYS = ("EasyEdit's MEND", "run", "MEND_PARALLEL", "device map")
VARYING = ("time", "edit_time", "total_time", "model_name")
"""Fields that differ between two runs of one script."""


class Found(NamedTuple):
    """What a run came to: the figures that it wrote, or its error's last line."""

    figures: dict[str, Any]
    error: str | None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python scripts/easyedit_examples")
    parser.add_argument("clone", type=Path, help="a clone of EasyEdit's repository")
    parser.add_argument("--only", default="", help="a pattern of the scripts' names")
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:])
    parser.add_argument("--work", type=Path, help="a folder for what is made (default: temporary)")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    sys.path.insert(0, str(options.clone.resolve()))
    sys.path.append(str(HERE.parent.parent))
    if not (work / "data").is_dir():
        work.mkdir(exist_ok=True)
        _made(work)
    for module in ("outside", "easyeditor", "sentence_transformers", "pandas"):
        importlib.import_module(module)
    logging.disable(logging.INFO)
    rows = ["| script | arguments | " + " | ".join(WAYS) + " |", "| --- " * (2 + len(WAYS)) + "|"]
    for number, case in enumerate(CASES):
        if re.search(options.only, case.title):
            row = _row(case, options.ways, options.clone.resolve(), work.resolve() / f"{number:02}")
            rows.append(row)
            print(rows[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _made(work: Path) -> None:
    """Make the models and data in a process of their own: that imports this package."""
    code = f"import material, pathlib; material.make_all(pathlib.Path({str(work)!r}))"
    paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)


def _row(case: Case, ways: Sequence[str], clone: Path, folder: Path) -> str:
    base = _run(case, WAYS[0], clone, folder)
    cells = [base.error or "runs"]
    for way in WAYS[1:]:
        if _refuses(base):
            cells.append("the same")
            continue
        if way not in ways:
            cells.append("not run")
            continue
        found = _run(case, way, clone, folder)
        figures = _compared(base, found)
        if found.error and found.error == base.error:
            cells.append(f"the same; {figures}")
        else:
            cells.append(found.error or figures)
    words = [*_own_words(case), *filter(None, [case.options])]
    shown = " ".join(f"`{word}`" for word in words)
    return "| " + " | ".join([case.title, shown, *cells]) + " |"


def _own_words(case: Case) -> list[str]:
    """The arguments that make this call another one than the script's other calls."""
    words = case.arguments.split()
    own = {"--data_type", "--datatype", "--dataset_type", "--evaluation_type", "--specify_answer"}
    found = [f"{one} {other}" for one, other in itertools.pairwise(words) if one in own]
    return found + [word for word in words if word == "--sequential_edit"]


def _refuses(base: Found) -> bool:
    """Whether the script does not know MEND, whoever provides it."""
    return (base.error or "").startswith(("`NotImplementedError", "`ValueError: Algorithm MEND"))


def _run(case: Case, way: str, clone: Path, folder: Path) -> Found:
    """Run the script in an empty folder, and collect what it wrote there."""
    folder = folder / way.replace(" ", "-").replace("'", "")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    model = f"../../{case.model}"  # EasyEdit reads the kind of model off this path
    name = "MEND_PARALLEL" if way in WAYS[2:] else "MEND"
    if case.training:
        text = training_yaml(name, model, final_eval=case.function is not None)
    else:
        text = editing_yaml(name, model, f"{model}/archive.pt")
    file = folder / (case.given if case.given and case.given.endswith(".yaml") else "my.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if case.given == "locality.cache":
        (folder / case.given).write_text(locality_cache(), encoding="utf-8")
    (folder / "data").symlink_to("../../data")
    script = clone / ("" if case.function else "examples") / case.script
    words = case.arguments.replace("HPARAMS", "my.yaml").replace("DATA", "data")
    command = [str(script), *words.replace("MODEL", model).split()]
    if case.function:
        command = [str(HERE / "call.py"), str(script), case.function]
    error = _in_a_fork(folder, _before(case, way, folder), command)
    return Found(_figures(folder, (folder / "log").read_text() if case.printed else ""), error)


def _before(case: Case, way: str, folder: Path) -> list[str]:
    """The words before the script's name; none without this package."""
    if way == WAYS[0]:
        return []
    command = ["mend-parallel", "run", *case.options.split()]
    if way == "device map":
        command += ["--device-map", json.dumps(MIXED_MAP)]
        command += ["--set", f"model_kwargs={{offload_folder: {folder / 'disk'}}}"]
    return command


def _in_a_fork(folder: Path, before: list[str], command: list[str]) -> str | None:
    """Run a command line in a copy of this process, with its output in `log`; its error's line."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _redirect(folder)
            if before:
                from easyedit_mend_parallel.cli import main as mend_parallel

                sys.argv = [*before, *command]
                mend_parallel()
            else:
                sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
                runpy.run_path(command[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        except BaseException:
            traceback.print_exc()
        finally:
            print(f"\n{time.process_time():.1f} s of CPU time")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return f"`{_last(folder)}`" if status else None


def _redirect(folder: Path) -> None:
    os.chdir(folder)
    with open("log", "wb", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _last(folder: Path) -> str:
    """The last line of the log that names an exception."""
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return found[-1][:120].replace("|", "/") if found else "no message"


def _figures(folder: Path, printed: str) -> dict[str, Any]:
    found = {}
    for path in sorted([*folder.glob("out/*.json"), *folder.glob("results.json")]):
        found[path.name.replace("MEND_PARALLEL", "MEND")] = json.loads(path.read_text("utf-8"))
    for line in printed.splitlines():
        if line.startswith("{"):
            found["printed"] = ast.literal_eval(line)
    return found


def _compared(base: Found, other: Found) -> str:
    """How far apart the numbers of two runs are; an error if anything else in them differs."""
    numbers = 0
    largest = 0.0
    for one, two in _pairs(base.figures, other.figures):
        if isinstance(one, int | float) and isinstance(two, int | float):
            numbers += 1
            same = one == two or (math.isnan(one) and math.isnan(two))
            largest = max(largest, 0.0 if same else abs(one - two) / max(abs(one), abs(two)))
        elif one != two:
            return f"differs: {str(one)[:40]} / {str(two)[:40]}"
    if not numbers:
        return "runs"
    return f"{numbers} equal" if largest == 0 else f"{numbers} within {largest:.0e}"


def _pairs(one: Any, two: Any) -> Any:
    """The values of two results that stand at the same place."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        for key in one:
            if key not in VARYING:
                yield from _pairs(one[key], two[key])
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for left, right in zip(one, two, strict=True):
            yield from _pairs(left, right)
    else:
        yield one, two


if __name__ == "__main__":
    main()
