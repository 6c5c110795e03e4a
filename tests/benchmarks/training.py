"""A training step beside EasyEdit's: its `EditTrainer` with its own MEND, in turns in one process.

    PYTHONPATH=tests python -m benchmarks.training steps --rank R [--host CLONE]
    PYTHONPATH=tests python -m benchmarks.training disk --rank R

Prints JSON. Both train SmolLM2-135M-Instruct on the same facts (`scripts/quality`), one edit in a
step, with its optimizer step. Hidden states below the targets are kept where a row says so, which
is what makes the difference. `disk` puts the blocks below the targets on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.host import import_host
from benchmarks.rounds import compared, in_its_own_process, interleaved, peak, resident
from easyedit_mend_parallel.cli.loading import load_model
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.trainer import Trainer

SCRIPTS = Path(__file__).parents[2] / "scripts" / "quality"
CONFIG = SCRIPTS / "smollm2.yaml"
FACTS = 100
"""Facts that a run of either trainer draws from: enough that no step repeats one."""
KEPT, EVERY_STEP, HOST = (
    "this package, hidden states kept",
    "this package, every step runs the whole model",
    "EasyEdit's trainer",
)


class Ours:
    """A step of this package's trainer, hidden states kept or not."""

    def __init__(self, data: Path, rank: int, kept: bool, disk: Path | None = None) -> None:
        hparams = MENDParallelTrainingHparams.from_hparams(CONFIG)
        hparams.model_name = hparams.tokenizer_name = str(prepare())
        hparams.rank, hparams.batch_size, hparams.trunk_memory = rank, 1, "1GiB" if kept else 0
        hparams.lr, hparams.locality_examples = 1e-6, 1
        if disk is not None:
            hparams.model_kwargs = {"device_map": on_disk(), "offload_folder": str(disk)}
        model, tokenizer = load_model(hparams)
        self.loaded = resident()
        examples, unrelated = read_examples(data / "train.jsonl")
        facts = Data(examples[:FACTS], unrelated)
        folder = Path(tempfile.mkdtemp())
        self.trainer = Trainer(model, tokenizer, hparams, facts, folder, quiet=True)
        self.trainer._begin()
        self.watch = GradientWatch(10**6)

    def step(self) -> None:
        self.trainer._step(self.watch)
        self.trainer.optimizer.step()
        self.trainer.progress.step += 1


class Theirs:
    """A step of EasyEdit's EditTrainer with its own MEND."""

    def __init__(self, data: Path, rank: int, clone: Path | None) -> None:
        host = import_host(clone)
        sys.path.insert(0, str(SCRIPTS))
        from easyedit_training import their_config

        config = their_config(rank=rank, accumulate_bs=1)
        facts = host.ZsreDataset(str(data / "train_zsre.json"), size=FACTS, config=config)
        self.trainer = host.EditTrainer(config=config, train_set=facts, val_set=facts)
        self.loaded = resident()
        self.trainer.global_iter = 1
        self.batches = iter(self.trainer.train_loader)

    def step(self) -> None:
        self.trainer.train_step(next(self.batches))


def on_disk() -> dict[str, Any]:
    """SmolLM2 with the 27 blocks below the targets' on disk."""
    blocks = {f"model.layers.{n}": "disk" if n < 27 else "cpu" for n in range(30)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {**dict.fromkeys(rest, "cpu"), **blocks}


def made(name: str, data: Path, rank: int, clone: Path | None) -> Ours | Theirs:
    return Theirs(data, rank, clone) if name == HOST else Ours(data, rank, name == KEPT)


def steps(data: Path, rank: int, clone: Path | None, rounds: int) -> dict[str, Any]:
    """Seconds and times EasyEdit's, and the peak of ten steps over the loaded model."""
    runs = {name: made(name, data, rank, clone).step for name in (HOST, EVERY_STEP, KEPT)}
    found = compared(interleaved(runs, rounds), HOST)
    host = ["--host", str(clone)] if clone else []
    for name, row in found.items():
        asked = ("memory", "--rank", str(rank), "--of", name, *host)
        row["mib"] = in_its_own_process("training", *asked)
    return found


def disk(data: Path, rank: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step whose trunk is on disk, run in every step or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: Ours(data, rank, name == KEPT, Path(folder, str(name == KEPT))).step
            for name in (EVERY_STEP, KEPT)
        }
        return compared(interleaved(runs, rounds), EVERY_STEP)


def memory(name: str, data: Path, rank: int, clone: Path | None) -> float:
    trainer = made(name, data, rank, clone)
    for _ in range(10):
        trainer.step()
    return peak() - trainer.loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("steps", "disk", "memory"))
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--host", type=Path, help="a clone of EasyEdit; default: the installed one")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--of", default=KEPT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, SCRIPTS / "facts.py", folder], check=True, stdout=sys.stderr
        )
        data = Path(folder)
        if asked.what == "memory":
            found: Any = memory(asked.of, data, asked.rank, asked.host)
        elif asked.what == "disk":
            found = disk(data, asked.rank, asked.rounds)
        else:
            found = steps(data, asked.rank, asked.host, asked.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
