"""What starting costs: the import, and the first edit on a model beside the second.

    PYTHONPATH=tests python -m benchmarks.startup imports|first --shape SHAPE

Prints JSON. Every figure comes from fresh processes, in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.rounds import in_its_own_process, interleaved, median
from benchmarks.shapes import SHAPES, requests, tokenizer
from easyedit_mend_parallel import MendParallel

IMPORTS = {
    "what it needs": "import torch, accelerate, transformers.pytorch_utils",
    "this package": "import easyedit_mend_parallel",
}
PROCESSES, IMPORT_ROUNDS = 5, 10


def imports() -> dict[str, Any]:
    """Seconds of a process that only imports."""

    def importing(line: str) -> None:
        subprocess.run([sys.executable, "-W", "ignore", "-c", line], check=True)

    steps = {name: lambda line=line: importing(line) for name, line in IMPORTS.items()}
    seconds = interleaved(steps, IMPORT_ROUNDS)
    needed, ours = (seconds[name] for name in IMPORTS)
    more = [a - b for a, b in zip(ours, needed, strict=True)]
    return {name: median(spent) for name, spent in seconds.items()} | {"more": median(more)}


def first_and_second(shape: str) -> list[float]:
    """Seconds of the first two edits on a model that has run once, with restore."""
    import torch

    chosen = SHAPES[shape]
    model = chosen.model()
    with torch.no_grad():
        model(torch.zeros(1, 10, dtype=torch.long), use_cache=False)
    editor = MendParallel(model, tokenizer(), chosen.hparams(), network=chosen.network(model))
    seconds = []
    for request in requests(2):
        started = time.perf_counter()
        editor.edit(request).rollback()
        seconds.append(time.perf_counter() - started)
    return seconds


def first(shape: str) -> dict[str, Any]:
    pairs = [in_its_own_process("startup", "pair", "--shape", shape) for _ in range(PROCESSES)]
    return {
        "first": median([one for one, _ in pairs]),
        "second": median([two for _, two in pairs]),
        "ratio": median([one / two for one, two in pairs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("imports", "first", "pair"))
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    asked = parser.parse_args()
    measure = {
        "imports": imports,
        "first": lambda: first(asked.shape),
        "pair": lambda: first_and_second(asked.shape),
    }
    print(json.dumps(measure[asked.what]()))


if __name__ == "__main__":
    main()
