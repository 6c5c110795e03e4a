"""Runs the core tests in environments with other versions, and writes a table of what passed.

    python scripts/matrix.py [--only PATTERN] [--tests FILE ...] [--cache FOLDER] [--out FILE]

Each row is a virtual environment of its own below the cache folder, made once with pip.
Interpreters are found on PATH as `python3.10` and so on, or in pyenv. A row whose interpreter or
packages cannot be had says so. Core tests need neither EasyEdit, nor g++, nor several processes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
TOOLS = ["pytest>=9", "hypothesis", "pytest-timeout", "pytest-xdist", "peft", "scipy", "matplotlib"]
TOOLS += ["bitsandbytes", "sentencepiece", "tiktoken", "protobuf"]
NOT_CORE = [
    "hosts",
    "simulated_suite",
    "sharded",
    "several_nodes",
    "demo",
    "demo_large",
    "docs",
    "benchmarks",
    "layout",
    "release",
]
"""Tests that need EasyEdit, g++, several processes, a download, or this project's own tools."""


class Row(NamedTuple):
    """An environment: an interpreter, and what pip is asked for; `newest` asks for no version."""

    python: str
    torch: str = "newest"
    transformers: str = "newest"
    accelerate: str = "newest"
    peft: str = "newest"

    @property
    def name(self) -> str:
        return "-".join(self)

    @property
    def wanted(self) -> list[str]:
        packages = zip(self._fields[1:], self[1:], strict=True)
        return [name if one == "newest" else f"{name}=={one}" for name, one in packages]


ROWS = [
    Row("3.10", torch="2.9.1", transformers="5.5.4", accelerate="1.1.0", peft="0.18.0"),
    Row("3.10"),
    Row("3.11", torch="2.9.1", transformers="5.5.4", peft="0.18.0"),  # as EasyEdit pins them
    Row("3.11"),
    Row("3.12", transformers="5.5.4", peft="0.18.0"),
    Row("3.12"),
    Row("3.13"),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python scripts/matrix.py")
    parser.add_argument("--only", default="", help="a pattern of rows, such as 3.11-newest-5")
    parser.add_argument("--tests", nargs="+", help="test files (default: all core tests)")
    folder = CACHE / "easyedit-mend-parallel" / "matrix"
    parser.add_argument("--cache", type=Path, default=folder, help="where environments are kept")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    tests = options.tests or core_tests()
    lines = [
        "| Python | torch | transformers | accelerate | peft | core tests | on |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    worked = True
    for row in ROWS:
        if re.search(options.only, row.name):
            found, passed = run(row, options.cache, tests)
            worked = worked and passed
            lines.append(found)
            print(found, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if worked else 1


def core_tests() -> list[str]:
    left_out = {f"test_{name}.py" for name in NOT_CORE}
    found = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if path.name not in left_out]


def run(row: Row, cache: Path, tests: list[str]) -> tuple[str, bool]:
    """The row's line in the table, and whether all of its tests passed."""
    interpreter = interpreter_of(row.python)
    if interpreter is None:
        return _line([*row], f"there is no python{row.python}"), True
    python = cache / row.name / "bin" / "python"
    if not python.is_file():
        error = make(row, interpreter, cache / row.name)
        if error:
            return _line([*row], error), True
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    (cache / row.name / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    last = (done.stdout.splitlines() or ["no tests"])[-1].strip("= ")
    return _line([row.python, *versions(python)], last), done.returncode == 0


def interpreter_of(version: str) -> str | None:
    """A Python of this version that starts: on PATH, or of pyenv."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = sorted(root.glob(f"versions/{version}.*/bin/python"))
    for candidate in (*map(str, kept), shutil.which(f"python{version}")):
        if candidate and not subprocess.run([candidate, "-V"], capture_output=True).returncode:
            return candidate
    return None


def make(row: Row, interpreter: str, folder: Path) -> str | None:
    """Make the environment; what pip says if it cannot, and then nothing is kept."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    done = subprocess.run(
        [*install, *row.wanted, *TOOLS, "-e", str(ROOT)], capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    shutil.rmtree(folder)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["pip failed"])[-1][:120]


def versions(python: Path) -> list[str]:
    """The versions that are installed, in the order of the table."""
    code = "from importlib.metadata import version as v; import sys; print(*map(v, sys.argv[1:]))"
    command = [python, "-c", code, *Row._fields[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def _line(versions: list[str], said: str) -> str:
    return "| " + " | ".join([*versions, said, date.today().isoformat()]) + " |"


if __name__ == "__main__":
    sys.exit(main())
