"""Runs every check and every measurement on a device, and writes one table and one JSON file.

    PYTHONPATH=tests python -m gpu [--device cuda:0] [--shapes llama-2-7b ...] [--minutes 8]
        [--host EASYEDIT] [--out gpu.json]

Needs torch, transformers, accelerate and this checkout with its dependencies, and no network;
bitsandbytes and EasyEdit if they are there. Each row runs in a process of its own. The exit code is
1 if one failed. What there was no time or no memory for is said, and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from benchmarks.edits import HOST, OUTPUT, PACKAGE
from benchmarks.rounds import machine
from benchmarks.shapes import SHAPES

from easyedit_mend_parallel.files import written_whole
from gpu.checks import CHECKS, accelerators

DTYPES = ("bfloat16", "float32", "float16")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
SHARE = 2.2
"""Memory that a measurement takes at most, in units of the model's weights."""
LEAST_SECONDS = 20.0
"""With less time left, no further row is begun."""


@dataclass(frozen=True)
class Row:
    """One process: `python -m ARGUMENTS`, which needs so many bytes on the device."""

    name: str
    arguments: tuple[str, ...]
    needs: int = 0
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What became of a row: its figures, or why there are none."""

    name: str
    result: str
    figures: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0


def rows(device: str, shapes: list[str], host: Path | None) -> Iterator[Row]:
    """The checks first, then the measurements, the smallest shape first."""
    for name in CHECKS:
        packages = ("bitsandbytes",) if name == "quantized_weights" else ()
        yield Row(name, ("gpu.checks", name, device), packages=packages)
    from_clone = ("--host", str(host)) if host else ()
    for shape in shapes:
        for dtype in DTYPES:
            needs = int(SHARE * weight_bytes(shape, dtype))
            asked = ("benchmarks.edits", shape, "--dtype", dtype, *from_clone)
            yield Row(f"time, {shape}, {dtype}", (*asked, "--rounds", "6"), needs)
            for one in (PACKAGE, OUTPUT, HOST):
                packages = ("easyeditor",) if one == HOST and not host else ()
                of = (*asked, "--memory-of", one)
                yield Row(f"memory, {shape}, {dtype}: {one}", of, needs, packages)


def weight_bytes(shape: str, dtype: str) -> int:
    """Bytes of a shape's model, without its norms."""
    one = SHAPES[shape]
    attention = one.width * one.width * (2 + 2 * one.kv_heads / one.heads)
    blocks = one.layers * (attention + 3 * one.width * one.ffn)
    embeddings = one.vocabulary * one.width * (1 if one.tied else 2)
    return int((blocks + embeddings) * getattr(torch, dtype).itemsize)


def fitting(device: str) -> list[str]:
    """The large shapes of which at least bfloat16 weights fit on `device`; times and memory are
    those of CUDA."""
    if not device.startswith("cuda"):
        return []
    large = [name for name in SHAPES if "7b" in name or "13b" in name]
    room = free_bytes(device)
    return [name for name in large if SHARE * weight_bytes(name, "bfloat16") <= room]


def free_bytes(device: str) -> int:
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return int(torch.cuda.mem_get_info(device)[0])


def run(row: Row, device: str, until: float) -> Result:
    """Runs a row, if there is time and room for it, and what it needs is installed."""
    missing = [name for name in row.packages if find_spec(name) is None]
    if missing:
        return Result(row.name, NOT_RUN, why=f"{missing[0]} is not installed")
    if row.needs and row.needs > free_bytes(device):
        return Result(row.name, NOT_RUN, why=f"it needs {row.needs / 2**30:.0f} GiB")
    started = time.monotonic()
    if until - started < LEAST_SECONDS:
        return Result(row.name, NOT_RUN, why="no time was left")
    command = [sys.executable, "-W", "ignore", "-m", *row.arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=until - started)
    except subprocess.TimeoutExpired:
        return Result(row.name, NOT_RUN, why="it did not end in the time that was left")
    seconds = time.monotonic() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(done.stderr, file=sys.stderr)
        return Result(row.name, FAILED, why=last, seconds=seconds)
    figures = json.loads(done.stdout.splitlines()[-1])
    if figures.get("edits") == 0:
        return Result(row.name, NOT_RUN, figures, "too few devices", seconds)
    return Result(row.name, PASSED, figures, seconds=seconds)


def shown(figures: dict[str, Any]) -> str:
    """A row's figures in words."""
    if "one edit" in figures:
        parts = []
        for what in ("one edit", "a batch of 8"):
            for name, found in figures[what].items():
                if name in (PACKAGE, OUTPUT, HOST):
                    seconds, ratio = found["seconds"]["median"], found["ratio"]["median"]
                    parts.append(f"{what}, {name}: {1000 * seconds:.1f} ms ({ratio:.2f} times)")
        return "; ".join(parts)
    if "over_model" in figures:
        return f"{figures['over_model']:.0f} MiB over the model"
    return ", ".join(f"{value} {name}" for name, value in figures.items())


def table(results: list[Result]) -> str:
    lines = ["| | result | figures | seconds |", "| --- | --- | --- | --- |"]
    for one in results:
        said = f"{one.result}: {one.why}" if one.why else one.result
        lines.append(f"| {one.name} | {said} | {shown(one.figures)} | {one.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", help="default: the first accelerator")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: 7B, 13B if they fit")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to begin nothing more")
    parser.add_argument("--host", type=Path, help="a clone of EasyEdit; default: the installed one")
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the JSON goes")
    asked = parser.parse_args()
    device = asked.device or first_accelerator()
    if device is None:
        parser.error("there is no accelerator; rehearse with --device cpu --shapes tiny")
    shapes = asked.shapes or fitting(device)
    until = time.monotonic() + 60 * asked.minutes
    results = []
    for row in rows(device, shapes, asked.host):
        if asked.only in row.name:
            results.append(run(row, device, until))
            print(f"{results[-1].name}: {results[-1].result} {results[-1].why}", flush=True)
    about = {"machine": machine(), "device": device, "devices": accelerators(device)}
    found = about | {"rows": [asdict(one) for one in results]}
    with written_whole(asked.out) as path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{about['machine']}, {device}\n\n{table(results)}\n\nwritten to {asked.out}")
    return int(any(one.result == FAILED for one in results))


def first_accelerator() -> str | None:
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else f"{found.type}:0"


if __name__ == "__main__":
    sys.exit(main())
