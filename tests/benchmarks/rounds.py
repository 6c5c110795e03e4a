"""Time in turns, and memory in processes of their own: how figures are taken, whatever of."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
ROUNDS = 20
"""Fewest rounds of a figure; the warm-up is not counted."""
WARM_UP = 2
REACH = 0.98
"""Half the width of a median's 95 % interval in order statistics, over the root of their number."""


def interleaved(
    steps: Mapping[str, Callable[[], Callable[[], Any] | None]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each step, one of each in a round, so that the machine's load falls on all alike.

    A step may return a second one, timed as "name, with restore" together with the first.
    """
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + WARM_UP):
        for name, step in steps.items():
            first, restore = timed(step)
            spent = {name: first}
            if restore is not None:
                second, _ = timed(restore)
                spent[f"{name}, with restore"] = first + second
                del restore
            if number >= WARM_UP:
                for key, value in spent.items():
                    seconds.setdefault(key, []).append(value)
    return seconds


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the result of one call; on a GPU, between two events."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        result = step()
        return time.perf_counter() - started, result
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    result = step()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000, result


def median(values: Sequence[float]) -> dict[str, float]:
    """The median and its 95 % interval, from order statistics."""
    ordered, n = sorted(values), len(values)
    reach = REACH * n**0.5
    return {
        "median": statistics.median(ordered),
        "low": ordered[max(0, int(n / 2 - reach))],
        "high": ordered[min(n - 1, int(n / 2 + reach))],
    }


def compared(seconds: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, Any]]:
    """{name: its seconds, and how many times those of `base` in the same round}."""
    return {
        name: {
            "seconds": median(spent),
            "ratio": median([a / b for a, b in zip(spent, seconds[base], strict=True)]),
            "rounds": len(spent),
        }
        for name, spent in seconds.items()
    }


def resident() -> float:
    """MiB that this process holds; from here on its peak is counted anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """The most MiB that this process held since `resident` was last called."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def in_its_own_process(module: str, *arguments: str, threads: int | None = None) -> Any:
    """What `python -m benchmarks.<module> ARGUMENTS` prints last, as JSON."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(made.stdout.splitlines()[-1])


def machine() -> str:
    """What the figures were measured on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores of {models[0] if models else 'an unnamed CPU'}"
    return f"{cores}, {memory:.0f} GiB, torch {torch.__version__}"
