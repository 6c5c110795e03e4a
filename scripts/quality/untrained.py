"""What edits without a trained hypernetwork reach on SmolLM2-135M, beside a trained archive.

    python scripts/quality/facts.py OUT
    python scripts/quality/untrained.py --train OUT/train.jsonl --data OUT/validation.jsonl

Prints the four measures of `easyedit_mend_parallel.evaluation.measures` for plain gradients (raw),
for rows normalised by statistics of the first training facts (calibrated), and for an archive
(trained), each request edited by itself. A request whose answer is not reached counts as unedited.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from smollm2 import loaded
from torch import Tensor

from easyedit_mend_parallel.demo import demo_archive
from easyedit_mend_parallel.evaluation.data import Example, read_examples
from easyedit_mend_parallel.evaluation.measures import MEASURES, Editing, Scores, evaluate
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.method.archive import Archive, load_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.step_search import Part
from easyedit_mend_parallel.method.untrained import Reach, ShortestSteps, identity_network
from easyedit_mend_parallel.training.calibration import calibrate
from easyedit_mend_parallel.weights.norm import weight_norm
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

BATCH = 8


def untrained(
    texts: Texts, targets: list[Target], network: Hypernetwork, reach: Reach, lengths: list[float]
) -> Editing:
    """Edits as `untrained: true` makes them; the relative norm of each goes into `lengths`."""
    norms = {target.name: weight_norm(texts.model, target) for target in targets}

    def edit(requests: Sequence[Text]) -> dict[str, LowRankUpdate]:
        batch = texts.batch(requests)
        answers = batch.answers(texts.tokenizer.all_special_ids)
        rows, losses = capture(texts.model, targets, batch)
        by_name = {target.name: target for target in targets}
        asked = [Request(text.prompt, text.target) for text in requests]
        part = Part(asked, answers, rows, losses)
        steps = ShortestSteps(texts.model, by_name, reach).search(part, network(rows))
        return {
            name: _kept(update, steps.answered, norms[name], lengths, first=name == targets[0].name)
            for name, update in steps.updates.items()
        }

    return edit


def _kept(
    update: LowRankUpdate, answered: Tensor, norm: float, lengths: list[float], first: bool
) -> LowRankUpdate:
    """`update` without the part of requests that were not reached."""
    for request in range(len(answered)):
        mine = update.request == request
        part = LowRankUpdate(update.keys[mine], update.values[mine], update.request[mine])
        length = float(part.norm()) / norm if answered[request] else float("nan")
        if first:
            lengths.append(length)
        else:
            lengths[request - len(answered)] = max(lengths[request - len(answered)], length)
    kept = answered.float()[update.request].unsqueeze(-1)
    return LowRankUpdate(update.keys, update.values * kept, update.request)


def said(scores: Sequence[Scores]) -> dict[str, Any]:
    return {
        one.split: {
            name: f"{one.scores[name].mean:.2f} "
            f"({one.scores[name].low:.2f}-{one.scores[name].high:.2f}, n={one.scores[name].n})"
            for name in MEASURES
        }
        for one in scores
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="facts for the statistics")
    parser.add_argument("--data", type=Path, required=True, help="facts to edit")
    parser.add_argument("--trained", type=Path, default=demo_archive())
    parser.add_argument("--statistics", type=int, default=200, help="training facts for them")
    parser.add_argument("--facts", type=int, help="of each split, the first so many")
    parser.add_argument("--only", nargs="*", default=["raw", "calibrated", "trained"])
    parser.add_argument("--margins", nargs="*", type=float, default=[1.0, 2.0, 3.0])
    parser.add_argument("--max-relative-norm", type=float)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    texts, targets, hparams = loaded()
    model, tokenizer = texts.model, texts.tokenizer
    config, limit = hparams.network_config(), options.max_relative_norm or hparams.max_relative_norm
    examples, unrelated = read_examples(options.data)
    examples = first_of_each(examples, options.facts)
    norms = {target.name: limit * weight_norm(model, target) for target in targets}

    network = Hypernetwork(targets, config)
    warm = [example.request for example in read_examples(options.train)[0][: options.statistics]]
    started = time.perf_counter()
    calibrate(
        model,
        targets,
        network,
        (make_batch(model, tokenizer, warm[n : n + BATCH]) for n in range(0, len(warm), BATCH)),
    )
    print(f"statistics of {len(warm)} facts in {time.perf_counter() - started:.0f} s")
    statistics = Archive(Path("statistics"), network.state_dict(), {"untrained": True})

    found: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as progress:

        def run(name: str, editing: Hypernetwork | Editing, more: Callable[[], Any]) -> None:
            bar = progress.add_task(name, total=len(examples))
            scores = evaluate(
                texts,
                targets,
                editing,
                examples,
                unrelated,
                batch_size=BATCH,
                progress=lambda done: progress.update(bar, completed=done),
            )
            found[name] = said(scores) | more()
            print(json.dumps({name: found[name]}, indent=1), flush=True)

        for kind, archive in (("raw", None), ("calibrated", statistics)):
            for margin in options.margins if kind in options.only else ():
                lengths: list[float] = []
                identity = identity_network(targets, config, archive)
                editing = untrained(texts, targets, identity, Reach(norms, margin), lengths)
                run(f"{kind}, margin {margin:g}", editing, lambda: _lengths(lengths))  # noqa: B023
        if "trained" in options.only:
            load_archive(options.trained).load_into(network)
            run("trained", network.eval().requires_grad_(False), dict)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


def first_of_each(examples: Sequence[Example], count: int | None) -> list[Example]:
    taken: dict[str, list[Example]] = {}
    for example in examples:
        taken.setdefault(example.split, []).append(example)
    return [example for some in taken.values() for example in some[:count]]


def _lengths(lengths: Sequence[float]) -> dict[str, Any]:
    reached = sorted(length for length in lengths if length == length)
    return {
        "not reached": len(lengths) - len(reached),
        "relative norm, median": round(reached[len(reached) // 2], 4),
        "relative norm, largest": round(reached[-1], 4),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
