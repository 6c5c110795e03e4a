"""An edit of a 7B shape that lies on disk, beside one forward pass over the same placement.

    PYTHONPATH=tests python -m benchmarks.disk 7b [--gib 2.5] [--apply output] [--rounds N]

Prints JSON. Without `--gib` the files are in the page cache; with it the process may use so much,
page cache included, and reads every block again in each pass. Both passes see the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Tokenizer

from benchmarks.rounds import median, timed
from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_hparams
from easyedit_mend_parallel.demo.memory import Peak, capped
from easyedit_mend_parallel.demo.random_model import ARCHIVE, RANKS, SHAPES, make, targets_of
from easyedit_mend_parallel.files import cache_folder
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests

GIB, MIB = 2**30, 2**20
REQUEST = {"prompt": "I am in", "target_new": "Rome"}
"""Twelve tokens, of a byte each."""
TOUCHED = 1 << 20
"""Bytes that are read at once to bring a file into the page cache."""


def loaded(shape: str, apply: str, folder: str) -> MendParallel:
    """An editor of the model with every block on disk, in its checkpoint."""
    directory = make(shape, cache_folder())
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    hparams.inner_params, hparams.rank = targets_of(shape), RANKS[shape]
    hparams.archive, hparams.device = str(directory / ARCHIVE), "cpu"
    hparams.apply = apply
    ends = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    blocks = range(int(SHAPES[shape]["num_hidden_layers"]))
    places = dict.fromkeys(ends, "cpu") | {f"model.layers.{n}": "disk" for n in blocks}
    model = AutoModelForCausalLM.from_pretrained(
        directory, device_map=places, offload_folder=folder, dtype=torch.bfloat16
    ).eval()
    return MendParallel(model, GPT2Tokenizer.from_pretrained(directory), hparams)


def in_this_process(shape: str, apply: str, rounds: int) -> dict[str, Any]:
    """Forward and edit in turns: seconds, and how much memory the edit takes."""
    with tempfile.TemporaryDirectory() as folder:
        editor = loaded(shape, apply, folder)
        for file in Path(editor.model.name_or_path).glob("*.safetensors"):
            with file.open("rb") as stream:
                while stream.read(TOUCHED):
                    pass
        batch = make_batch(editor.model, editor.tokenizer, as_requests(REQUEST))
        of_network: list[float] = []
        compute = editor.network.forward

        def network_pass(rows: Any) -> Any:
            started = time.perf_counter()
            updates = compute(rows)
            of_network.append(time.perf_counter() - started)
            return updates

        editor.network.forward = network_pass  # type: ignore[method-assign]
        peak, at_most = Peak(), 0.0
        forward, edit = [], []
        for _ in range(rounds + 1):
            with torch.no_grad():
                forward.append(timed(lambda: batch.losses_on(editor.model))[0])
            peak.reset()
            before = peak.mib
            edit.append(timed(lambda: editor.edit(REQUEST).rollback())[0])
            at_most = max(at_most, peak.mib - before)
    pairs = list(zip(forward, edit, of_network, strict=True))[1:]
    return {
        "tokens": int(batch.inputs["input_ids"].numel()),
        "forward": median([one for one, _, _ in pairs]),
        "edit with restore": median([two for _, two, _ in pairs]),
        "of it the network's pass": median([three for _, _, three in pairs]),
        "over forward": median([two - one for one, two, _ in pairs]),
        "ratio without the network's pass": median([(b - c) / a for a, b, c in pairs]),
        "mib": at_most,
        "rounds": rounds,
    }


def held_to(gib: float, arguments: list[str]) -> dict[str, Any]:
    """The same in a process that may use so much, page cache included."""
    with capped(int(gib * GIB)) as cap:
        command = [*cap.prefix, sys.executable, "-W", "ignore", "-m", "benchmarks.disk", *arguments]
        made = subprocess.run(
            command, preexec_fn=cap.join, stdout=subprocess.PIPE, text=True, check=True
        )
        found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
        return found | {"gib": gib, "held to it by": cap.says}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--gib", type=float)
    parser.add_argument("--apply", choices=("weight", "output"), default="weight")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if asked.gib:
        arguments = [asked.shape, "--apply", asked.apply, "--rounds", str(asked.rounds)]
        print(json.dumps(held_to(asked.gib, arguments)))
    else:
        print(json.dumps(in_this_process(asked.shape, asked.apply, asked.rounds)))


if __name__ == "__main__":
    main()
