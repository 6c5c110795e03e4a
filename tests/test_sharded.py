"""Runs the claims of tests/sharded in two processes that hold one tensor-parallel model (torchrun,
gloo, CPU). tests/sharded/worker.py says how to run one of them by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
WORKER = TESTS / "sharded" / "worker.py"
TIME_LIMIT_SECONDS = 240  # a hang fails; the claims take 20 seconds on two idle cores


def test_everything_holds_on_a_tensor_parallel_model(tmp_path: Path) -> None:
    # What the outer pytest left in the environment is not meant for the processes.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "SHARDED_CHECKPOINTS": str(tmp_path),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(WORKER)]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = child.communicate(timeout=TIME_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        child.terminate()  # torchrun then ends the processes that it started
        output, _ = child.communicate(timeout=60)

    assert child.returncode == 0, f"tests/sharded failed:\n{output[-10_000:]}"
    assert "claims hold on 2 processes" in output
    print("tests/sharded:", output.strip().splitlines()[-1])
