"""The time of measuring single edits, beside EasyEdit's `compute_edit_quality` on the same facts.

    PYTHONPATH=tests python -m benchmarks.evaluating [--shape NAME] [--host EASYEDIT]

Prints JSON. Both measure every request before and after its edit, given the target text: a prompt,
a rephrase, two neighbours and two unrelated texts. Both make the edits with this package; the time
that the edits alone take in the same round is left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.host import HostMend, import_host
from benchmarks.rounds import ROUNDS, compared, interleaved
from benchmarks.shapes import SHAPES, WORDS, Shape, tokenizer
from easyedit_mend_parallel import MendParallel, Request
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere
from easyedit_mend_parallel.evaluation import evaluate
from easyedit_mend_parallel.evaluation.data import Example, LocalityText

PACKAGE, HOST, EDITS = "this package", "EasyEdit", "the edits alone"
REQUESTS = 32
"""As many requests as are measured in a round."""


def examples(count: int) -> list[Example]:
    """Requests of seven words, with six texts that test each."""

    def words(first: int, length: int) -> str:
        return " ".join(WORDS[(first * 7 + n * 3) % len(WORDS)] for n in range(length))

    return [
        Example(
            Request(words(n, 7), words(n + 50, 2)),
            (words(n + 20, 8),),
            neighbours=(LocalityText(words(n + 30, 7)), LocalityText(words(n + 31, 7))),
            unrelated=(LocalityText(words(n + 40, 12)), LocalityText(words(n + 41, 12))),
        )
        for n in range(count)
    ]


def record_of(example: Example) -> dict[str, Any]:
    """The same as EasyEdit's evaluation reads it; locality needs an answer of some kind."""
    texts = (*example.neighbours, *example.unrelated)
    return {
        "prompt": example.request.prompt,
        "target_new": example.request.target_new,
        "ground_truth": WORDS[0],
        "rephrase_prompt": example.rephrases[0],
        "locality": {
            "texts": {
                "prompt": [text.prompt for text in texts],
                "ground_truth": [WORDS[1] for _ in texts],
            }
        },
    }


def easyedits(model: Any, shape: Shape, editor: MendParallel, asked: Any, clone: Path | None):  # type: ignore[no-untyped-def]
    """EasyEdit's way: each request by itself, before its edit and after it."""
    host = import_host(clone)
    quality = importlib.import_module("easyeditor.evaluate").compute_edit_quality
    with tempfile.TemporaryDirectory() as folder:
        archive = shape.archive(model, Path(folder))
        hparams = HostMend(host, model, tokenizer(), shape, archive).hparams
    model.requires_grad_(False)

    def measure() -> None:
        for example in asked:
            record = record_of(example)
            with torch.no_grad(), cuda_elsewhere():
                quality(model, hparams.model_name, hparams, tokenizer(), record, "cpu")
                result = editor.edit(example.request)
                quality(model, hparams.model_name, hparams, tokenizer(), record, "cpu")
            result.rollback()

    return measure


def measured(
    shape: Shape, clone: Path | None, *, count: int, rounds: int, beside: bool = True
) -> dict[str, Any]:
    model, asked = shape.model(), examples(count)
    editor = MendParallel(model, tokenizer(), shape.hparams(), network=shape.network(model))

    def ours() -> None:
        evaluate(
            model,
            tokenizer(),
            asked,
            editor.edit,
            targets=editor.targets,
            at_outputs=True,
            free=False,
            held=(),
        )

    def edits() -> None:
        for example in asked:
            editor.edit(example.request).rollback()

    steps: dict[str, Callable[[], None]] = {PACKAGE: ours, EDITS: edits}
    if beside:
        steps[HOST] = easyedits(model, shape, editor, asked, clone)
    seconds = interleaved(steps, rounds)
    alone = seconds.pop(EDITS)
    without = {
        name: [all_of - edit for all_of, edit in zip(spent, alone, strict=True)]
        for name, spent in seconds.items()
    }
    return {"requests": count, "of": compared(without, PACKAGE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--host", type=Path, help="a clone of EasyEdit; default: the installed one")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    print(json.dumps(measured(shape, asked.host, count=asked.requests, rounds=asked.rounds)))


if __name__ == "__main__":
    main()
