"""Claims about training in two processes (gloo, on a CPU): what they learn together is what one
process learns from the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from trained.runs import furthest, state, trainer

TESTS = Path(__file__).parent


def in_two_processes(folder: Path, **options: object) -> list[dict]:
    """The networks that two processes end with, each its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TESTS / "trained" / "worker.py"), str(folder), json.dumps(options)]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    return [load_file(folder / f"process-{n}.safetensors") for n in range(2)]


@pytest.mark.parametrize(
    ("steps", "accumulated"), [(1, 1), (10, 1), (2, 2)], ids=["gradients", "ten-steps", "parts"]
)
def test_two_processes_learn_what_one_learns(steps: int, accumulated: int, tmp_path: Path) -> None:
    common = {
        "max_iters": steps,
        "accumulate_bs": accumulated,
        "final_eval": False,
        "lr": 1e-3,
        "lr_lr": 1e-5,
    }
    one = trainer(tmp_path / "one", batch_size=4, **common)
    begun = state(one)
    one.run()
    expected = state(one)

    first, second = in_two_processes(tmp_path, batch_size=2, **common)

    assert furthest(expected, begun) > 1e-4, "the run has to move something"
    assert furthest(first, second) == 0.0
    statistics = [name for name in expected if name.endswith(("_mean", "_std", "_s", ".k"))]
    assert statistics
    assert furthest(first, {name: expected[name] for name in statistics}) < 1e-5
    moved = {name: expected[name] - begun[name] for name in expected if name not in statistics}
    assert furthest({n: first[n] - begun[n] for n in moved}, moved) < 1e-5 * steps


def test_two_processes_measure_what_one_measures_and_write_it_once(tmp_path: Path) -> None:
    one = trainer(tmp_path / "one", batch_size=4, max_iters=2)
    one.run()
    in_two_processes(tmp_path, batch_size=2, max_iters=2)

    mine, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "one", tmp_path / "run")
    )

    assert [(line["step"], line["kind"]) for line in theirs] == [
        (line["step"], line["kind"]) for line in mine
    ]
    for got, expected in zip(theirs, mine, strict=True):
        figures = {name: value for name, value in expected.items() if name != "kind"}
        assert {name: got[name] for name in figures} == pytest.approx(figures, rel=1e-3, abs=1e-5)
