"""Scores an archive on facts at several strengths: its learned rates times each of them.

    python scripts/quality/choose.py OUT/validation.jsonl --archive run/archive.safetensors

The strength with the largest sum of the measures is what `--write` puts into the archive's rates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from smollm2 import loaded

from easyedit_mend_parallel.archive import load_archive, save_archive
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.data import read_examples
from easyedit_mend_parallel.training.evaluation import MEASURES, evaluate

OWN_HEADER = ("targets", "config", "format_version")
"""What `save_archive` writes into every header itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("facts", type=Path)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--strength", type=float, action="append", help="default: 1")
    parser.add_argument("--write", type=Path, help="the archive at the best strength, halved")
    parser.add_argument("--out", type=Path, help="also write the scores to this JSON file")
    options = parser.parse_args()
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
        scores = evaluate(texts, targets, network, examples, unrelated)
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
