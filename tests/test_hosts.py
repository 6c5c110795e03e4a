"""The bridge works on both EasyEdits: the release that pip installs, and a clone of today's.

Runs the tests of tests/hosts once for each, in a process of its own, and reports each test by its
name. To run them by hand:

    export OMP_NUM_THREADS=1
    EASYEDIT_MEND_PARALLEL_HOST=installed python -m pytest tests/hosts
    EASYEDIT_MEND_PARALLEL_HOST=clone EASYEDIT_HOME=... python -m pytest tests/hosts
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import inner_runs
import pytest

SUITE = Path(__file__).with_name("hosts")
TIME_LIMIT_SECONDS = 900  # a hang fails; each host takes a fraction of this

pytestmark = pytest.mark.host


def test_the_bridge_on_the_installed_easyedit(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run_suite("installed", tmp_path, subtests)


@pytest.mark.skipif(
    not os.environ.get("EASYEDIT_HOME"),
    reason="EASYEDIT_HOME does not name a clone of EasyEdit's repository",
)
def test_the_bridge_on_a_clone_of_easyedit(tmp_path: Path, subtests: pytest.Subtests) -> None:
    home = Path(os.environ["EASYEDIT_HOME"]).absolute()
    assert (home / "easyeditor").is_dir(), f"EASYEDIT_HOME={home} holds no easyeditor folder"
    run_suite("clone", tmp_path, subtests, EASYEDIT_HOME=str(home))


def run_suite(host: str, folder: Path, subtests: pytest.Subtests, **variables: str) -> None:
    """Run tests/hosts with `host` in a process of its own, in `folder`."""
    environment = inner_runs.child_environment(
        EASYEDIT_MEND_PARALLEL_HOST=host, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
    )
    # A path on which another EasyEdit lies is not meant for the child.
    environment.pop("EASYEDIT_HOME", None)
    paths = environment["PYTHONPATH"].split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(
        path for path in paths if not (Path(path) / "easyeditor").is_dir()
    )
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider"]
    inner_runs.run(
        [*command, "-p", "inner_runs"],
        subtests,
        folder=folder,
        environment=environment | variables,
        seconds=TIME_LIMIT_SECONDS,
        records=folder / "records",
    )
