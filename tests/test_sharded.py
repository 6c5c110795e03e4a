"""Runs the claims of tests/sharded in two processes that hold one tensor-parallel model (torchrun,
gloo, CPU), and reports each by its name. tests/sharded/worker.py says how to run one by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import inner_runs
import pytest

WORKER = Path(__file__).parent / "sharded" / "worker.py"
TIME_LIMIT_SECONDS = 240  # a hang fails; the claims take 20 seconds on two idle cores


def test_everything_holds_on_a_tensor_parallel_model(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(WORKER)]
    inner_runs.run(
        command,
        subtests,
        folder=tmp_path,
        environment=inner_runs.child_environment(SHARDED_CHECKPOINTS=str(tmp_path)),
        seconds=TIME_LIMIT_SECONDS,
        records=tmp_path / "records",
    )
