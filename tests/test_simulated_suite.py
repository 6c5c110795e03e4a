"""Runs the tests of tests/simulated in a process of its own, which has simulated accelerators, and
reports each by its name.

To run them by hand, for instance one of them under a debugger:

    EASYEDIT_MEND_PARALLEL_SIMULATED=1 OMP_NUM_THREADS=1 python -m pytest tests/simulated
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import inner_runs
import pytest
import torch

SUITE = Path(__file__).with_name("simulated")
TIME_LIMIT_SECONDS = 1800  # a hang fails; the suite and its one compilation take far less


def test_everything_holds_on_simulated_accelerators(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"]
    command += ["-p", "inner_runs"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "2"]
    inner_runs.run(
        command,
        subtests,
        folder=SUITE.parent.parent,
        environment=inner_runs.child_environment(EASYEDIT_MEND_PARALLEL_SIMULATED="1"),
        seconds=TIME_LIMIT_SECONDS,
        records=tmp_path / "records",
    )


def test_this_process_keeps_its_own_accelerator() -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is None or accelerator.type != "sim"
    assert not hasattr(torch, "sim")
