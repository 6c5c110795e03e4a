"""Runs the claims of tests/sharded in processes that hold one split model (torchrun, gloo, CPU):
two for tensor parallelism, FSDP2 and ZeRO-3, four for HSDP. Reports each claim by its name.
tests/sharded/worker.py says how to run one by hand.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import inner_runs
import pytest

WORKER = Path(__file__).parent / "sharded" / "worker.py"
TIME_LIMIT_SECONDS = 300  # a hang fails; the claims take 45 seconds on two idle cores


@pytest.mark.parametrize("processes", [2, 4])
def test_everything_holds_on_a_split_model(
    processes: int, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    _run(processes, tmp_path, subtests)


def test_everything_holds_of_training_on_a_split_model(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    _run(2, tmp_path, subtests, SHARDED_CLAIMS="training")


@pytest.mark.parametrize("claims", ["partitioned", "partitioned_training"])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_everything_holds_on_a_partitioned_model(
    claims: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    # DeepSpeed replaces functions of torch, so its claims have processes of their own.
    _run(2, tmp_path, subtests, SHARDED_CLAIMS=claims, DS_ACCELERATOR="cpu")


def _run(processes: int, folder: Path, subtests: pytest.Subtests, **variables: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(WORKER)]
    inner_runs.run(
        command,
        subtests,
        folder=folder,
        environment=inner_runs.child_environment(SHARDED_CHECKPOINTS=str(folder), **variables),
        seconds=TIME_LIMIT_SECONDS,
        records=folder / "records",
    )
