"""The bridge works on both EasyEdits: the release that pip installs, and a clone of today's.

Runs the tests of tests/hosts once for each, in a process of its own. To run them by hand:

    export OMP_NUM_THREADS=1
    EASYEDIT_MEND_PARALLEL_HOST=installed python -m pytest tests/hosts
    EASYEDIT_MEND_PARALLEL_HOST=clone EASYEDIT_HOME=... python -m pytest tests/hosts
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("hosts")
TIME_LIMIT_SECONDS = 900  # a hang fails; each host takes a fraction of this

pytestmark = pytest.mark.host


def test_the_bridge_on_the_installed_easyedit(tmp_path: Path) -> None:
    run_suite("installed", tmp_path)


@pytest.mark.skipif(
    not os.environ.get("EASYEDIT_HOME"),
    reason="EASYEDIT_HOME does not name a clone of EasyEdit's repository",
)
def test_the_bridge_on_a_clone_of_easyedit(tmp_path: Path) -> None:
    home = Path(os.environ["EASYEDIT_HOME"]).absolute()
    assert (home / "easyeditor").is_dir(), f"EASYEDIT_HOME={home} holds no easyeditor folder"
    run_suite("clone", tmp_path, EASYEDIT_HOME=str(home))


def run_suite(host: str, folder: Path, **variables: str) -> None:
    """Run tests/hosts with `host` in a process of its own, in `folder`; fail if a test fails."""
    # What the outer pytest left in the environment is not meant for the inner one, nor is a path
    # on which another EasyEdit lies.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTEST_") and name != "EASYEDIT_HOME"
    }
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(
        str(Path(path).absolute())
        for path in paths
        if path and not (Path(path) / "easyeditor").is_dir()
    )
    environment |= {"EASYEDIT_MEND_PARALLEL_HOST": host, "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}

    child = subprocess.run(
        [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )

    assert child.returncode == 0, f"tests/hosts failed on {host}:\n{child.stdout[-10_000:]}"
    print(f"tests/hosts, {host}:", child.stdout.strip().splitlines()[-1])
