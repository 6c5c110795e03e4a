"""One edit, a batch of eight, and two hundred in a row: this package, EasyEdit, MEND in plain
autograd, and the limit, in turns in one process.

    PYTHONPATH=tests python -m benchmarks.edits SHAPE [--host CLONE] [--memory-of NAME | --in-a-row]

Prints JSON. All contestants share one model's weights and one network, and each takes its edits
back, but in the row of two hundred, where each has a model of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.host import HostMend, import_host
from benchmarks.limit import Limit
from benchmarks.plain_mend import PlainMend
from benchmarks.rounds import ROUNDS, WARM_UP, compared, interleaved, peak, resident
from benchmarks.shapes import SHAPES, Shape, requests, tokenizer, twin
from easyedit_mend_parallel import MendParallel

PACKAGE, OUTPUT = "this package", "this package, `apply: output`"
PLAIN = "MEND in plain autograd"
HOST, BARE_HOST = "EasyEdit", "EasyEdit without diagnostics"
NARROW, WHOLE = "limit, narrow", "limit, whole"
CONTESTANTS = (PACKAGE, OUTPUT, PLAIN, HOST, BARE_HOST)
BATCH, IN_A_ROW = 8, 200
WARMED = SHAPES["tiny"]

Edit = Callable[[Sequence[Mapping[str, str]]], Callable[[], Any]]
"""Edits the model by requests, and returns what takes the edit back."""


def contestant(
    name: str, model: Any, shape: Shape, network: Any, clone: Path | None, folder: Path
) -> Edit:
    """The edit of one contestant on `model`."""
    if name == PLAIN:
        return PlainMend(model, tokenizer(), shape.targets, network).edit
    if name in (HOST, BARE_HOST):
        archive = shape.archive(model, folder)
        host = import_host(clone)
        plain = name == HOST
        return HostMend(host, model, tokenizer(), shape, archive, diagnostics=plain).edit
    hparams = shape.hparams(
        apply="output" if name == OUTPUT else "weight", aggregate="sum", device=str(model.device)
    )
    editor = MendParallel(model, tokenizer(), hparams, network=network)
    return lambda asked: editor.edit(asked).rollback


def measured(shape: Shape, dtype: torch.dtype, clone: Path | None, rounds: int) -> dict[str, Any]:
    """{what is measured: {contestant: seconds and ratio to the narrow limit}}."""
    with tempfile.TemporaryDirectory() as folder:
        model = shape.model(dtype, device())
        network = shape.network(model).to(device())
        edits = {
            name: contestant(name, twin(model), shape, network, clone, Path(folder))
            for name in CONTESTANTS
            if name not in (HOST, BARE_HOST) or clone or find_spec("easyeditor")
        }
        one, eight = requests(1), requests(BATCH)
        ids = tokenizer()(f"{one[0]['prompt']} {one[0]['target_new']}", return_tensors="pt")
        limit = Limit(twin(model), shape.targets, ids["input_ids"].to(device()), 2, network)
        limits = {NARROW: limit.narrow, WHOLE: lambda: limit.whole() and None}
        steps = {name: lambda edit=edit: edit(one) for name, edit in edits.items()}
        found = {"one edit": compared(interleaved({**limits, **steps}, rounds), NARROW)}
        steps = {name: lambda edit=edit: edit(eight) for name, edit in edits.items()}
        found["a batch of 8"] = compared(interleaved(steps, rounds), PACKAGE)
    return found


def in_a_row(shape: Shape, dtype: torch.dtype, clone: Path | None) -> dict[str, Any]:
    """Two hundred edits that stay in, each contestant's in a model of its own."""
    folder = tempfile.TemporaryDirectory()
    steps = {}
    for name in (PACKAGE, PLAIN, HOST, BARE_HOST):
        model = shape.model(dtype, device())
        network = shape.network(model).to(device())
        edit = contestant(name, model, shape, network, clone, Path(folder.name))
        asked = iter(requests(IN_A_ROW + WARM_UP))

        def step(edit: Edit = edit, asked: Any = asked) -> None:
            edit([next(asked)])

        steps[name] = step
    return compared(interleaved(steps, IN_A_ROW), PACKAGE)


def memory(name: str, shape: Shape, dtype: torch.dtype, clone: Path | None) -> dict[str, float]:
    """MiB that one edit takes at most: over the model, and over model and network.

    An edit of a small model and a product of the networks' size come first: the code and the
    buffers that libraries keep from then on are no part of an edit.
    """
    with tempfile.TemporaryDirectory() as folder:
        small = WARMED.model(dtype, device())
        network = WARMED.network(small).to(device())
        contestant(name, small, WARMED, network, clone, Path(folder))(requests(1))()
        model = shape.model(dtype, device())
        with torch.no_grad():
            model(torch.zeros(1, 10, dtype=torch.long, device=device()), use_cache=False)
        rows = torch.zeros(10 * len(shape.targets), shape.width + shape.ffn, device=device())
        factor = torch.zeros(shape.rank, rows.shape[1], device=device())
        (rows @ factor.T) @ factor
        del rows, factor
        gc.collect()
        model_only = resident()
        network = None if name in (HOST, BARE_HOST) else shape.network(model).to(device())
        edit = contestant(name, model, shape, network, clone, Path(folder))
        gc.collect()
        both = resident()
        restore = edit(requests(1))
        at_most = peak()
        restore()
    return {"over_model": at_most - model_only, "over_model_and_network": at_most - both}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--host", type=Path, help="a clone of EasyEdit; default: the installed one")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--memory-of", choices=CONTESTANTS)
    parser.add_argument("--in-a-row", action="store_true")
    asked = parser.parse_args()
    shape, dtype = SHAPES[asked.shape], getattr(torch, asked.dtype)
    if asked.memory_of:
        found = memory(asked.memory_of, shape, dtype, asked.host)
    elif asked.in_a_row:
        found = in_a_row(shape, dtype, asked.host)
    else:
        found = measured(shape, dtype, asked.host, asked.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
