"""Scores an archive on facts at several strengths: its learned rates times each of them.

    python scripts/quality/choose.py OUT/validation.jsonl --archive run/archive.safetensors

The strength with the largest sum of the measures is what `--write` puts into the archive's rates.
`--max-step` edits as `max_step` in the hyperparameters does.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from smollm2 import loaded

from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.evaluation.measures import MEASURES, Editing, evaluate
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.method.archive import load_archive, save_archive
from easyedit_mend_parallel.method.extend_steps import ExtendedSteps
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import NetworkUpdates
from easyedit_mend_parallel.method.step_search import SearchedUpdates
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

OWN_HEADER = ("targets", "config", "format_version")
"""What `save_archive` writes into every header itself."""


def longer(
    texts: Texts, targets: Sequence[Target], network: Hypernetwork, max_step: float
) -> Editing:
    """Edits as long as their answers take, `max_step` times MEND's own at most."""

    own = NetworkUpdates(texts.model, network)
    by_name = {target.name: target for target in targets}
    search = ExtendedSteps(texts.model, by_name, max_step)

    def editing(texts_asked: Sequence[Text]) -> dict[str, LowRankUpdate]:
        batch = texts.batch(texts_asked)
        asked = [Request(text.prompt, text.target) for text in texts_asked]
        updates = SearchedUpdates(texts.model, own, search, asked, texts.tokenizer.all_special_ids)
        return updates(0, batch, *capture(texts.model, targets, batch))

    return editing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("facts", type=Path)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--strength", type=float, action="append", help="default: 1")
    parser.add_argument("--max-step", type=float, default=1.0)
    parser.add_argument("--write", type=Path, help="the archive at the best strength, halved")
    parser.add_argument("--out", type=Path, help="also write the scores to this JSON file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a request that is not answered is counted, not named
    torch.set_num_threads(1)
    texts, targets, hparams = loaded()
    network = Hypernetwork(targets, hparams.network_config())
    archive = load_archive(options.archive)
    archive.load_into(network)
    rates = network.edit_lrs.detach().clone()
    examples, unrelated = read_examples(options.facts)
    table = Table("strength", "split", *MEASURES)
    found = {}
    for strength in options.strength or [1.0]:
        network.edit_lrs.data = rates * strength
        network.eval().requires_grad_(False)
        editing: Hypernetwork | Editing = network
        if options.max_step > 1:
            editing = longer(texts, targets, network, options.max_step)
        scores = evaluate(texts, targets, editing, examples, unrelated)
        found[strength] = scores
        for one in scores:
            cells = [one.scores[name] for name in MEASURES]
            said = [f"{c.mean:.3f} [{c.low:.3f}, {c.high:.3f}] n={c.n}" for c in cells]
            table.add_row(f"{strength:g}", one.split, *said)
    Console(width=160).print(table)
    best = max(found, key=lambda strength: sum(one.total for one in found[strength]))
    scores = {str(s): [one.to_dict() for one in some] for s, some in found.items()}
    if options.out:
        options.out.write_text(json.dumps(scores, indent=2) + "\n")
    if options.write:
        network.edit_lrs.data = rates * best
        kept = {k: v for k, v in archive.header.items() if k not in OWN_HEADER}
        # the header of a run has the folder that the model was read from
        kept |= {"base": hparams.model_name, "strength": best, "scores": scores[str(best)]}
        save_archive(options.write, network, half=True, **kept)
        print(f"{options.write} at strength {best:g}")


if __name__ == "__main__":
    main()
