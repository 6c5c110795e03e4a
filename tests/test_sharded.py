"""Runs the claims of tests/sharded in processes that hold one split model (torchrun, gloo, CPU):
two for tensor parallelism and FSDP2, four for HSDP. Reports each claim by its name.
tests/sharded/worker.py says how to run one by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import inner_runs
import pytest

WORKER = Path(__file__).parent / "sharded" / "worker.py"
TIME_LIMIT_SECONDS = 300  # a hang fails; the claims take 45 seconds on two idle cores


@pytest.mark.parametrize("processes", [2, 4])
def test_everything_holds_on_a_split_model(
    processes: int, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(WORKER)]
    inner_runs.run(
        command,
        subtests,
        folder=tmp_path,
        environment=inner_runs.child_environment(SHARDED_CHECKPOINTS=str(tmp_path)),
        seconds=TIME_LIMIT_SECONDS,
        records=tmp_path / "records",
    )
