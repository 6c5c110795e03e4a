"""How fast this machine computes and moves bytes: measured where it can be in a moment, assumed
elsewhere. A speed is a range, and says which of the two it is.

Knows devices and nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROWS, WIDTH = 32, 2048
"""The product that is timed, ROWS × WIDTH by WIDTH × WIDTH: a linear layer with a short text."""
COPIED = 64 << 20
"""Bytes of the copy that is timed: more than a cache holds."""
SLOWER = 3
"""A model runs between a product's measured speed and this many times slower: between its products
are attention, norms, hooks and Python."""


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, per second; `measured` on this machine, or assumed."""

    low: float
    high: float
    measured: bool = False


@dataclass(frozen=True)
class Speeds:
    """`flops` and `memory` of each kind of device ("cpu", "accelerator"), in operations and bytes
    a second; `link` is between RAM and an accelerator, `disk` reads a file. `calls` is how many
    layers a second can be called at all: Python, hooks and what a device takes to start."""

    flops: dict[str, Range]
    memory: dict[str, Range]
    link: Range
    disk: Range
    calls: Range


ASSUMED = Speeds(
    flops={"cpu": Range(2e10, 5e11), "accelerator": Range(5e12, 2e14)},
    memory={"cpu": Range(5e9, 5e10), "accelerator": Range(3e11, 3e12)},
    link=Range(4e9, 4e10),
    disk=Range(2e8, 7e9),
    calls=Range(2e3, 3e4),
)
"""From a laptop to a server; disks from a shared one to files that the system has in RAM."""


def measured(dtype: torch.dtype) -> Speeds:
    """The speeds of this machine in `dtype`, with what is assumed where nothing can be measured.

    Takes a fraction of a second and 130 MB on the CPU and as much on the first accelerator.
    """
    devices = {"cpu": torch.device("cpu")}
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None:
        devices["accelerator"] = torch.device(found.type, 0)
    flops, memory = dict(ASSUMED.flops), dict(ASSUMED.memory)
    for kind, device in devices.items():
        flops[kind] = _range(2 * ROWS * WIDTH**2 / _seconds(_product(device, dtype), device))
        memory[kind] = _range(2 * COPIED / _seconds(_copy(device), device))
    return Speeds(flops, memory, ASSUMED.link, ASSUMED.disk, ASSUMED.calls)


def _range(per_second: float) -> Range:
    return Range(per_second / SLOWER, per_second, measured=True)


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    # Several weights in turn, as in a model: one would stay in the cache.
    weights = [torch.ones(WIDTH, WIDTH, dtype=dtype, device=device) for _ in range(4)]
    x = torch.ones(ROWS, WIDTH, dtype=dtype, device=device)
    turn = iter(range(1 << 30))
    return lambda: x @ weights[next(turn) % len(weights)].T


def _copy(device: torch.device) -> Callable[[], object]:
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _seconds(do: Callable[[], object], device: torch.device, times: int = 8) -> float:
    do()
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        do()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
