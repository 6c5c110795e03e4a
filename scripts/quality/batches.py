"""Measures how many facts one batch holds: edits, rephrases, neighbours, other text, time, memory.

    python scripts/quality/batches.py --facts test.jsonl --archive ARCHIVE --out batches.json

SmolLM2-135M-Instruct on one thread, in one process. `--easyedit CLONE` puts EasyEdit's own
`batch_edit` beside it, with the same archive. See docs/experiments.md for the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from batch_measures import MEASURES, Fact, Judge, Scores, copied_into, read_facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelHyperParams,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.demo import demo_archive
from easyedit_mend_parallel.demo.memory import Peak
from easyedit_mend_parallel.demo.smollm2 import prepare

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean_loss": ("mean_loss", {}),
    "sum": ("sum", {}),
    # Keys from the unedited forward pass, a fixed ridge, one pass; a request's tokens are summed.
    "unedited-keys": (
        "least_squares",
        {"keys_from": "unedited", "label_weight": 1, "preserved_text_weight": 0.1},
    ),
    "one pass": ("least_squares", {"passes": 1, "label_weight": 1, "preserved_text_weight": 0.1}),
    "least_squares": ("least_squares", {}),
}
"""{name here: (aggregate, its options)}; what an archive keeps comes beneath them."""
GROUPS = {1: 96, 8: 12, 32: 3, 96: 1}
"""How many batches of each size are measured, where there are facts enough."""
UNRELATED_TEXTS = 40


class Bench:
    """The model, its judge, and the ways to edit it with one archive."""

    def __init__(self, model: Path, archive: Path, options: dict[str, Any]) -> None:
        self.path, self.archive, self.options = model, archive, options
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model).eval().requires_grad_(False)
        self.header = load_archive(archive).header
        self.names = [target["name"] for target in self.header["targets"]]
        self.judge = Judge(self.model, self.tokenizer, self.editor("sum").targets)

    def fields(self) -> dict[str, Any]:
        return {
            "model_name": str(self.path),
            "inner_params": self.names,
            "archive": str(self.archive),
            **self.header["config"],
        }

    def editor(self, method: str) -> MendParallel:
        how, options = METHODS[method]
        if how == "least_squares":
            options = {**self.options, **options}
        hparams = MENDParallelHyperParams(
            **self.fields(), aggregate=how, aggregate_options=options, batch_limit="1GiB"
        )
        return MendParallel(self.model, self.tokenizer, hparams)

    def ours(self, method: str) -> Callable[[Sequence[Fact]], Callable[[], None]]:
        editor = self.editor(method)

        def edit(facts: Sequence[Fact]) -> Callable[[], None]:
            return editor.edit([fact.request for fact in facts]).rollback

        return edit

    def easyedit(self, clone: Path) -> Callable[[Sequence[Fact]], Callable[[], None]]:
        """What EasyEdit's own `batch_edit` calls, on a second model of its own; the weights that it
        makes are then judged in ours."""
        sys.path.insert(0, str(clone))
        import easyeditor  # type: ignore[import-not-found]

        logging.disable(logging.WARNING)
        folder = tempfile.mkdtemp()
        archive = Path(folder) / "archive.pt"
        network = self.editor("sum").network
        save_archive(archive, network, model_config=self.model.config.to_dict())
        fields = MENDParallelHyperParams(**self.fields()).to_dict()
        fields |= {"alg_name": "MEND", "alg": "MEND", "archive": str(archive)}
        # EasyEdit's loss knows decoders by the names of their classes.
        fields |= {"model_class": type(self.model).__name__, "tokenizer_name": str(self.path)}
        fields |= {"device": "cpu", "max_length": 60, "model_name": str(self.path)}
        known = easyeditor.MENDHyperParams.__dataclass_fields__
        hparams = easyeditor.MENDHyperParams(
            **{name: value for name, value in fields.items() if name in known}
        )
        editor = easyeditor.BaseEditor.from_hparams(hparams)
        kept = {name: editor.model.get_parameter(name).detach().clone() for name in self.names}

        def edit(facts: Sequence[Fact]) -> Callable[[], None]:
            requests = [fact.request for fact in facts]
            editor.apply_algo(
                editor.model, editor.tok, requests, editor.hparams, return_orig_weights=True
            )
            edited = {name: editor.model.get_parameter(name).detach() for name in self.names}
            before = copied_into(self.model, edited)
            copied_into(editor.model, kept)
            return lambda: copied_into(self.model, before) and None

        return edit


def measured(
    bench: Bench,
    edit: Callable[[Sequence[Fact]], Callable[[], None]],
    groups: Sequence[Sequence[Fact]],
    unrelated: Sequence[str],
    what: str,
    peak: Peak,
) -> dict[str, Any]:
    """Every group edited, judged and taken back: scores by the length of targets, time, memory."""
    by_length = {"one token": Scores(), "several tokens": Scores()}
    seconds, largest = 0.0, 0.0
    each = max(2, math.ceil(UNRELATED_TEXTS / len(groups)))
    for number, facts in enumerate(track(groups, what, transient=True)):
        peak.reset()
        before, started = peak.mib, time.perf_counter()
        undo = edit(facts)
        seconds += time.perf_counter() - started
        largest = max(largest, peak.mib - before)
        texts = [unrelated[(number * each + i) % len(unrelated)] for i in range(each)]
        for name, scores in by_length.items():
            chosen = [f for f in facts if (bench.judge.n_tokens(f) == 1) == (name == "one token")]
            scores.add(bench.judge.scores(chosen, texts if name == "one token" else []))
        undo()
    total = Scores()
    for scores in by_length.values():
        total.add(scores)
    shown = {
        name: {
            measure: [scores.mean(measure), *scores.interval(measure), len(scores.of[measure])]
            for measure in MEASURES
            if scores.of[measure]
        }
        for name, scores in {"all": total, **by_length}.items()
    }
    n = sum(map(len, groups))
    return {"scores": shown, "seconds a request": seconds / n, "MiB": round(largest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M-Instruct, made anew")
    parser.add_argument("--archive", type=Path, default=demo_archive())
    parser.add_argument("--facts", type=Path, nargs="+", required=True, help="JSON lines")
    parser.add_argument("--split", help="of those facts (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 96, 1000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--easyedit", type=Path, help="a clone of EasyEdit, measured too")
    parser.add_argument("--easyedit-up-to", type=int, default=96, help="its largest batch")
    parser.add_argument("--options", type=json.loads, default={}, help="aggregate_options as JSON")
    parser.add_argument("--one-token", action="store_true", help="only facts of one-token targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON; a plot goes beside it, as PNG")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    bench = Bench(asked.model or prepare(), asked.archive, asked.options)
    facts, unrelated = read_facts(asked.facts, asked.split)
    if asked.one_token:
        facts = [fact for fact in facts if bench.judge.n_tokens(fact) == 1]
    random.Random(asked.seed).shuffle(facts)
    sizes = [size for size in asked.sizes if size <= len(facts)]
    if left_out := sorted(set(asked.sizes) - set(sizes)):
        print(f"{len(facts)} facts are too few for batches of {', '.join(map(str, left_out))}")
    used = facts[: max(size * groups_of(size, len(facts)) for size in sizes)]
    bench.judge.know([query for fact in used for query in fact.neighbours], unrelated)

    ways = {name: bench.ours(name) for name in asked.methods}
    if asked.easyedit:
        ways = {"EasyEdit": bench.easyedit(asked.easyedit), **ways}
    results: list[dict[str, Any]] = []
    peak = Peak()
    for size in sizes:
        groups = [used[i * size : (i + 1) * size] for i in range(groups_of(size, len(facts)))]
        for name, edit in ways.items():
            if name == "EasyEdit" and size > asked.easyedit_up_to:
                continue
            found = measured(bench, edit, groups, unrelated, f"{name}, {size}", peak)
            results.append({"method": name, "size": size, "batches": len(groups), **found})
            if asked.out:
                asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 150).print(table(results))
    if asked.out:
        plot(results, asked.out.with_suffix(".png"))


def groups_of(size: int, n_facts: int) -> int:
    return max(1, min(GROUPS.get(size, 1), n_facts // size))


def table(results: Sequence[dict[str, Any]]) -> Table:
    shown = Table("size", "one update from", "targets", *MEASURES, "ms a request", "MiB")
    for result in results:
        for name, scores in result["scores"].items():
            if name == "all" or not scores:
                continue
            shown.add_row(
                f"{result['batches']} × {result['size']}",
                result["method"],
                name,
                *(_with_interval(scores.get(measure)) for measure in MEASURES),
                f"{1000 * result['seconds a request']:.0f}",
                str(result["MiB"]),
            )
        shown.add_section()
    return shown


def _with_interval(score: Sequence[float] | None) -> str:
    if score is None:
        return ""
    mean, low, high, n = score
    return f"{mean:.2f} ({low:.2f}-{high:.2f}; {n:.0f})"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Each measure against the size of the batch, a line for each way, with its intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(14, 3.6), sharey=True)
    for axis, measure in zip(axes, MEASURES, strict=True):
        for method in dict.fromkeys(result["method"] for result in results):
            rows = [r for r in results if r["method"] == method and measure in r["scores"]["all"]]
            sizes = [row["size"] for row in rows]
            mean, low, high = zip(*(r["scores"]["all"][measure][:3] for r in rows), strict=True)
            line = axis.plot(sizes, mean, marker="o", label=method)[0]
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15)
        axis.set(title=measure, xlabel="requests in one batch", xscale="log", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="upper center", ncols=len(names), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
