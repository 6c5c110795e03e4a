"""Measures every figure of docs/performance.md and writes it there: JSON, tables, plots.

    PYTHONPATH=tests python -m benchmarks [--only WORD ...] [--list]

Each figure comes from a process of its own; with EASYEDIT_HOME, a clone of EasyEdit, it stands
beside that one too. `--only` measures the figures with one of the words in their names again and
leaves the others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import date
from pathlib import Path

import torch

from benchmarks.edits import BARE_HOST, CONTESTANTS, HOST
from benchmarks.report import FIGURES_FILE, read_figures, write_figures, write_page
from benchmarks.rounds import in_its_own_process, machine

THREADS = os.cpu_count() or 1
CPU_SHAPES = ("smollm2-135m", "llama-1b")
GPU_SHAPES = ("llama-2-7b", "llama-2-13b")


def figures() -> dict[str, tuple[int, tuple[str, ...]]]:
    """{name: threads, and the module of this package with its arguments}"""
    clone = os.environ.get("EASYEDIT_HOME")
    hosts: dict[str, tuple[str, ...]] = {"": ()}
    if clone:
        hosts[", EasyEdit's repository"] = ("--host", clone)
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    on_gpu = torch.cuda.is_available()
    for shape in GPU_SHAPES if on_gpu else CPU_SHAPES:
        for dtype in ("float32", "bfloat16") if on_gpu else ("float32",):
            asked = ("edits", shape, "--dtype", dtype)
            for says, host in hosts.items():
                name = f"edits {shape} {dtype}{says}"
                found[name] = THREADS, (*asked, *host)
                for one in (HOST, BARE_HOST) if host else CONTESTANTS:
                    of = (*asked, *host, "--memory-of", one)
                    found[f"memory {shape} {dtype}{says}: {one}"] = THREADS, of
    for says, host in hosts.items():
        row = ("edits", CPU_SHAPES[0], "--in-a-row", *host)
        found[f"in a row {CPU_SHAPES[0]}{says}"] = THREADS, row
    last = hosts[list(hosts)[-1]]
    for rank in ("128", "1920"):
        found[f"training, rank {rank}"] = 1, ("training", "steps", "--rank", rank, *last)
    found["training, trunk on disk"] = 1, ("training", "disk", "--rank", "128")
    for apply in ("weight", "output"):
        found[f"disk, {apply}"] = 1, ("disk", "7b", "--apply", apply)
        found[f"disk, {apply}, capped"] = 1, ("disk", "7b", "--apply", apply, "--gib", "2.5")
    for what in ("soak", "solved", "systems", "targets", "bytes"):
        found[f"growth, {what}"] = 1, ("growth", what)
    found["scopes smollm2-135m"] = 1, ("scopes", "--shape", "smollm2-135m")
    found["evaluation"] = 1, ("evaluating", *last)
    found["start, imports"] = 1, ("startup", "imports")
    for shape in CPU_SHAPES:
        found[f"start, first edit {shape}"] = THREADS, ("startup", "first", "--shape", shape)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument("--list", action="store_true", help="say which figures there are")
    asked = parser.parse_args()
    chosen = {
        name: how
        for name, how in figures().items()
        if not asked.only or any(word in name for word in asked.only)
    }
    if asked.list:
        print("\n".join(chosen))
        return
    found = read_figures()
    for number, (name, (threads, arguments)) in enumerate(chosen.items(), 1):
        print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        figure = in_its_own_process(*arguments, threads=threads)
        said = [Path(a).name if os.path.sep in a else a for a in arguments]
        found[name] = {
            "command": f"OMP_NUM_THREADS={threads} python -m benchmarks.{' '.join(said)}",
            "machine": machine(),
            "date": date.today().isoformat(),
            "took": round(time.perf_counter() - started),
            "found": figure,
        }
        write_figures(found)
    write_page(found)
    print(f"{FIGURES_FILE} and the page beside it")


if __name__ == "__main__":
    main()
