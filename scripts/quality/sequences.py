"""Measures edits made one after another in one model: what holds of all of them, and the time.

    python scripts/quality/sequences.py --facts validation.jsonl --out sequence.json

SmolLM2-135M-Instruct on one thread, in one process, each fact an edit of its own. After each mark
every fact edited so far is judged. See docs/quality.md for the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from batch_measures import MEASURES, read_facts
from batches import Bench
from rich.console import Console
from rich.progress import track
from rich.table import Table

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_archive
from easyedit_mend_parallel.demo.smollm2 import prepare

UNRELATED_TEXTS = 60


def measured(bench: Bench, facts: Sequence[Any], texts: Sequence[str], asked: Any) -> list[Any]:
    """Scores and seconds for an edit at each mark, oldest first."""
    hparams = MENDParallelHyperParams(
        **bench.fields(),
        aggregate="least_squares",
        aggregate_options=bench.options,
        sequence=asked.sequence,
        max_step=asked.max_step,
        on_worse="ignore",
    )
    editor = MendParallel(bench.model, bench.tokenizer, hparams)
    found, seconds = [], 0.0
    for number, fact in enumerate(track(facts, asked.sequence, transient=True), 1):
        started = time.perf_counter()
        editor.edit(fact.request)
        seconds += time.perf_counter() - started
        if number in asked.marks:
            scores = bench.judge.scores(facts[:number], texts)
            shown = {
                name: [scores.mean(name), *scores.interval(name), len(scores.of[name])]
                for name in MEASURES
            }
            found.append({"edits": number, "scores": shown, "seconds an edit": seconds / number})
            if asked.out:
                asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    editor.rollback_all()
    return found


def table(found: Sequence[dict[str, Any]]) -> Table:
    shown = Table("edits in the model", *MEASURES, "seconds an edit")
    for one in found:
        cells = [one["scores"][name] for name in MEASURES]
        shown.add_row(
            str(one["edits"]),
            *(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high, _ in cells),
            f"{one['seconds an edit']:.2f}",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--facts", type=Path, nargs="+", required=True, help="JSON lines")
    parser.add_argument("--archive", type=Path, default=demo_archive())
    parser.add_argument("--marks", type=int, nargs="+", default=[1, 4, 10, 30, 100])
    parser.add_argument("--sequence", choices=("solve", "add"), default="solve")
    parser.add_argument("--max-step", type=float, default=1.0)
    parser.add_argument("--options", type=json.loads, default={}, help="aggregate_options as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(prepare(), asked.archive, asked.options)
    facts, unrelated = read_facts(asked.facts, None)
    random.Random(asked.seed).shuffle(facts)
    facts, texts = facts[: max(asked.marks)], unrelated[:UNRELATED_TEXTS]
    bench.judge.know([query for fact in facts for query in fact.neighbours], texts)
    found = measured(bench, facts, texts, asked)
    Console(width=None if sys.stdout.isatty() else 150).print(table(found))


if __name__ == "__main__":
    main()
