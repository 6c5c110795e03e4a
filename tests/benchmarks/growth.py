"""How the cost of an edit grows: with the edits before it, with its targets, with its tokens.

    PYTHONPATH=tests python -m benchmarks.growth soak|solved|systems|targets|bytes [--edits N]
        [--device cuda]

Prints JSON. The soak adds edits up and holds no result, so the ledger forgets all but the base and
the last edit. `solved` solves each edit of SmolLM2's shape together with those before it; `systems`
does only that step, for the widths of a 7B, on any device. The bytes are counted between simulated
accelerators, on which the model lies in four parts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.rounds import interleaved, median, resident
from benchmarks.shapes import SHAPES, WORDS, Shape, requests, tokenizer
from easyedit_mend_parallel import MendParallel, rollback_all
from easyedit_mend_parallel.method.growing_system import GrowingSystem, SolveRows, SystemOptions

EDITS = 10_000
SOAKED = Shape("soak", 6, 256, 704, 4, 4, 2000, rank=64)
STRETCHES = 50
"""The soak's edits are judged in so many stretches, each by its median."""
WIDTHS, TOKENS = (128, 256, 512, 1024), (5, 10, 20, 40, 80)
DEVICES = 4
SOLVED = 1000
AT_MARK = 9
"""How many edits around a mark are timed; the figure is their median."""
MARKS = (10, 100, 1000)
WIDTHS_7B = ((4096, 11008), (11008, 4096))
"""(in, out) of the MLPs' weights."""
ROWS = 12
"""Tokens of an edit."""


def soak(edits: int) -> dict[str, Any]:
    """Edit after edit on one model, all of which stay in it; then the last and all taken out."""
    model = SOAKED.model()
    before = {name: model.get_parameter(name).detach().clone() for name in SOAKED.targets}
    editor = MendParallel(model, tokenizer(), SOAKED.hparams(), network=SOAKED.network(model))
    asked = requests(97)
    seconds, memory = [], []
    for number in range(edits):
        started = time.perf_counter()
        editor.edit(asked[number % len(asked)])
        seconds.append(time.perf_counter() - started)
        if number % (edits // STRETCHES) == 0:
            gc.collect()
            memory.append(resident())
    last = {name: model.get_parameter(name).detach().clone() for name in SOAKED.targets}
    editor.edit(asked[0]).rollback()
    exact_last = all(model.get_parameter(name).equal(bits) for name, bits in last.items())
    rollback_all(model)
    exact_base = all(model.get_parameter(name).equal(bits) for name, bits in before.items())
    length = edits // STRETCHES
    stretches = [
        statistics.median(seconds[n * length : (n + 1) * length]) for n in range(STRETCHES)
    ]
    return {
        "edits": edits,
        "ms": [1000 * each for each in stretches],
        "ms_slope_per_10000": 10_000 / length * 1000 * slope(stretches[1:]),
        "mib": memory,
        "mib_slope_per_10000": 10_000 / length * slope(memory[2:]),
        "exact": [exact_last, exact_base],
    }


def solved(edits: int) -> dict[str, Any]:
    """Edits one after another, each solved together with those before it; then all undone."""
    shape = SHAPES["smollm2-135m"]
    model = shape.model()
    before = {name: model.get_parameter(name).detach().clone() for name in shape.targets}
    hparams = shape.hparams()
    hparams.aggregate, hparams.sequence = "least_squares", "solve"
    hparams.aggregate_options = {"preserved_text_weight": 0}
    editor = MendParallel(model, tokenizer(), hparams, network=shape.network(model))
    seconds, memory = [], []
    for number, request in enumerate(requests(edits), 1):
        started = time.perf_counter()
        editor.edit(request)
        seconds.append(time.perf_counter() - started)
        if number in MARKS:
            gc.collect()
            memory.append(resident())
    rollback_all(model)
    exact = all(model.get_parameter(name).equal(bits) for name, bits in before.items())
    return {"edits": edits, "ms": at_marks(seconds), "mib": memory, "exact": exact}


def systems(edits: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds to solve a system of a 7B's width again with the rows of one more edit."""
    found = {}
    for width, out in WIDTHS_7B:
        torch.manual_seed(0)
        options = SystemOptions(1e-3, 10.0, 0.0, network=0)
        system, seconds = GrowingSystem(f"{width} to {out}", options, None), []
        for _ in range(edits):
            rows = SolveRows.of(
                torch.randn(ROWS, width, device=device),
                torch.randn(ROWS, out, device=device),
                torch.zeros(ROWS, dtype=torch.bool, device=device),
                torch.zeros(ROWS, dtype=torch.long, device=device),
            )
            wait_for(device)
            started = time.perf_counter()
            system.add(rows)
            system.net()
            wait_for(device)
            seconds.append(time.perf_counter() - started)
        found[f"{width} to {out}"] = {"ms": at_marks(seconds), "mib": system.nbytes / 2**20}
    return found


def wait_for(device: torch.device) -> None:
    """Until everything that was begun on an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def at_marks(seconds: Sequence[float]) -> dict[str, float]:
    """{mark: median milliseconds of the edits around it}"""
    half = AT_MARK // 2
    return {
        str(mark): 1000 * statistics.median(seconds[max(0, mark - 1 - half) : mark + half])
        for mark in MARKS
        if mark <= len(seconds)
    }


def targets(rounds: int = 10) -> dict[str, Any]:
    """Milliseconds of an edit by how many weights it changes, over those of its capture alone."""
    shape = SHAPES["smollm2-135m"]
    model, steps = shape.model(), {}
    names = [name for name in model.state_dict() if ".mlp." in name]
    for blocks in (1, 2, 4, 6, 8, 10):
        chosen = replace(shape, rank=128, chosen=tuple(names[-3 * blocks :]))
        editor = MendParallel(model, tokenizer(), chosen.hparams(), network=chosen.network(model))
        steps[str(3 * blocks)] = lambda editor=editor: editor.edit(requests(1)).rollback()
    seconds = interleaved(
        {name: lambda step=step: step() and None for name, step in steps.items()}, rounds
    )
    ms = {int(name): 1000 * median(spent)["median"] for name, spent in seconds.items()}
    return {
        "targets": list(ms),
        "ms": list(ms.values()),
        "r2": r_squared(list(ms), list(ms.values())),
    }


def copied(width: int, tokens: int) -> int:
    """Bytes between devices for one edit of a prompt of so many tokens, at rank 16."""
    import simulated_accelerators
    from accelerate import dispatch_model

    shape = Shape("cut", 8, width, 2 * width, 4, 4, 300, rank=16)
    model = shape.model()
    network = shape.network(model)
    kind = simulated_accelerators.DEVICE_TYPE
    places = {f"model.layers.{n}": f"{kind}:{n // 2}" for n in range(8)}
    ends = {"model.embed_tokens": f"{kind}:0", "model.rotary_emb": f"{kind}:0"}
    ends |= {"model.norm": f"{kind}:3", "lm_head": f"{kind}:3"}
    dispatch_model(model, places | ends, force_hooks=True)
    network.to(f"{kind}:3")
    editor = MendParallel(model, tokenizer(), shape.hparams(), network=network)
    asked = {"prompt": " ".join(WORDS[: tokens - 2]), "target_new": " ".join(WORDS[-2:])}
    editor.edit(asked).rollback()
    simulated_accelerators.reset_copied_bytes()
    editor.edit(asked)
    return simulated_accelerators.copied_bytes()


def transferred() -> dict[str, Any]:
    """Bytes that travel for one edit, by width and by tokens."""
    import simulated_accelerators

    simulated_accelerators.load(DEVICES)
    counted = {width: [copied(width, tokens) for tokens in TOKENS] for width in WIDTHS}
    flat = [(t * w, counted[w][n]) for w in WIDTHS for n, t in enumerate(TOKENS)]
    return {
        "tokens": TOKENS,
        "widths": WIDTHS,
        "bytes": counted,
        "r2_with_tokens_times_width": r_squared(*zip(*flat, strict=True)),
        "bytes_per_token_and_width": slope([b for _, b in flat], [a for a, _ in flat]),
    }


def slope(ys: Sequence[float], xs: Sequence[float] | None = None) -> float:
    return statistics.linear_regression(range(len(ys)) if xs is None else xs, ys).slope


def r_squared(xs: Sequence[float], ys: Sequence[float]) -> float:
    return statistics.correlation(xs, ys) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("soak", "solved", "systems", "targets", "bytes"))
    parser.add_argument("--edits", type=int)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    measure = {
        "soak": lambda: soak(asked.edits or EDITS),
        "solved": lambda: solved(asked.edits or SOLVED),
        "systems": lambda: systems(asked.edits or SOLVED, asked.device),
        "targets": targets,
        "bytes": transferred,
    }
    print(json.dumps(measure[asked.what]()))


if __name__ == "__main__":
    main()
