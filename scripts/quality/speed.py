"""Seconds and memory of a training step, beside EasyEdit's EditTrainer with its own MEND.

    PYTHONPATH=<clone of EasyEdit> python scripts/quality/speed.py DATA --rank 128 --rank 1920

Both train on the same facts, one edit in a step with its optimizer step, in turns in one process;
hidden states below the targets are kept (rows say so), which is what makes the difference. Memory
is measured in processes of their own: the peak over the loaded model. `--disk` puts the model's
trunk on disk and compares a step that runs it with one that does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.loading import load_model
from easyedit_mend_parallel.training.data import read_examples
from easyedit_mend_parallel.training.fitting import Data
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.training.trainer import Trainer

CONFIG = Path(__file__).parent / "smollm2.yaml"
FACTS = 100
"""Facts that a run of either trainer draws from: enough that no step repeats one."""


class Ours:
    """A step of this package's trainer, hidden states kept or not."""

    def __init__(self, data: Path, rank: int, kept: bool = True, disk: Path | None = None) -> None:
        hparams = MENDParallelTrainingHparams.from_hparams(CONFIG)
        hparams.model_name = hparams.tokenizer_name = str(prepare())
        hparams.rank, hparams.batch_size, hparams.trunk_memory = rank, 1, "1GiB" if kept else 0
        hparams.lr = 1e-6
        if disk is not None:
            hparams.model_kwargs = {"device_map": on_disk(), "offload_folder": str(disk)}
        model, tokenizer = load_model(hparams)
        self.loaded = resident_bytes()
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

    def __init__(self, data: Path, rank: int) -> None:
        from easyedit_training import their_config
        from easyeditor import EditTrainer, ZsreDataset

        config = their_config(rank=rank, accumulate_bs=1)
        facts = ZsreDataset(str(data / "train_zsre.json"), size=FACTS, config=config)
        self.trainer = EditTrainer(config=config, train_set=facts, val_set=facts)
        self.loaded = resident_bytes()
        self.trainer.global_iter = 1
        self.batches = iter(self.trainer.train_loader)

    def step(self) -> None:
        self.trainer.train_step(next(self.batches))


def resident_bytes() -> int:
    """What the process holds now; from here on its peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def on_disk() -> dict[str, Any]:
    """SmolLM2 with the 27 blocks below the targets' on disk."""
    blocks = {f"model.layers.{n}": "disk" if n < 27 else "cpu" for n in range(30)}
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {**dict.fromkeys(rest, "cpu"), **blocks}


def timed(contestants: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, in turns; the first three rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 3):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant.step()
            if number >= 3:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median of paired ratios, with its 95 % interval (from order statistics)."""
    ordered, n = sorted(ratios), len(ratios)
    reach = 0.98 * n**0.5
    low, high = int(max(0, n / 2 - reach)), int(min(n - 1, n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def over_the_model(data: Path, rank: int, who: str) -> int:
    """Bytes that ten steps take over the loaded model, in a process of its own."""
    command = [sys.executable, __file__, str(data), "--rank", str(rank), "--memory-of", who]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(made.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that facts.py wrote")
    parser.add_argument("--rank", type=int, action="append", required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--disk", action="store_true", help="the trunk on disk, without EasyEdit")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    if options.memory_of:
        make = Ours if options.memory_of == "ours" else Theirs
        contestant = make(options.data, options.rank[0])
        for _ in range(10):
            contestant.step()
        print(peak_bytes() - contestant.loaded)
        return
    table = Table("rank", "trainer", "s per step", "times as fast", "MiB over the model")
    found = []
    for rank in options.rank:
        with tempfile.TemporaryDirectory() as folder:
            if options.disk:
                contestants: dict[str, Any] = {
                    "every step runs the trunk": Ours(
                        options.data, rank, False, Path(folder) / "a"
                    ),
                    "hidden states kept": Ours(options.data, rank, True, Path(folder) / "b"),
                }
            else:
                contestants = {
                    "EasyEdit": Theirs(options.data, rank),
                    "hidden states kept": Ours(options.data, rank),
                }
            seconds = timed(contestants, options.rounds)
        base = next(iter(seconds.values()))
        for name, spent in seconds.items():
            ratio = interval([a / b for a, b in zip(base, spent, strict=True)])
            who = "theirs" if name == "EasyEdit" else "ours"
            memory = 0 if options.disk else over_the_model(options.data, rank, who)
            found.append(
                {
                    "rank": rank,
                    "trainer": name,
                    "seconds": statistics.median(spent),
                    "times_as_fast": ratio,
                    "mib_over_model": memory / 2**20,
                }
            )
            table.add_row(
                str(rank),
                name,
                f"{statistics.median(spent):.3f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*ratio),
                f"{memory / 2**20:.0f}" if memory else "",
            )
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
