"""Runs the tests of tests/simulated in a process of its own, which has simulated accelerators.

To run them by hand, for instance one of them under a debugger:

    EASYEDIT_MEND_PARALLEL_SIMULATED=1 OMP_NUM_THREADS=1 python -m pytest tests/simulated
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

SUITE = Path(__file__).with_name("simulated")
TIME_LIMIT_SECONDS = 1800  # a hang fails; the suite and its one compilation take far less


def test_everything_holds_on_simulated_accelerators() -> None:
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "2"]
    # What the outer pytest left in the environment is not meant for the inner one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"EASYEDIT_MEND_PARALLEL_SIMULATED": "1", "OMP_NUM_THREADS": "1"}

    child = subprocess.run(
        command,
        cwd=SUITE.parent.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )

    assert child.returncode == 0, f"tests/simulated failed:\n{child.stdout[-10_000:]}"
    print("tests/simulated:", child.stdout.strip().splitlines()[-1])


def test_this_process_keeps_its_own_accelerator() -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is None or accelerator.type != "sim"
    assert not hasattr(torch, "sim")
