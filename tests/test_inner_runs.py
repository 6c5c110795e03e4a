"""A suite that runs in a child process is reported test by test: a red run names the test that
broke, also where the process ended or a file could not be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inner_runs import child_environment

OUTER = """
import sys
from pathlib import Path
import inner_runs

def test_outer(tmp_path, subtests):
    command = [sys.executable, "-m", "pytest", "{inner}", "-q", "-p", "inner_runs", *{options}]
    environment = inner_runs.child_environment()
    inner_runs.run(command, subtests, folder=tmp_path, environment=environment,
                   seconds={seconds}, records=tmp_path / "records")
"""
GOOD = "def test_good(): pass\n"
BAD = "def test_bad(): assert 1 + 1 == 3\n"
SKIPPED = "import pytest\n@pytest.mark.skip(reason='no wings')\ndef test_flies(): pass\n"
NO_FIXTURE = "def test_asks(nobody): pass\n"
ENDS = "import os\ndef test_ends(): os._exit(7)\n"
HANGS = "import time\ndef test_hangs(): time.sleep(60)\n"


def outer_run(
    folder: Path, inner: str, options: list[str] | None = None, *, seconds: int = 60, more: str = ""
) -> str:
    """What an outer pytest prints whose one test runs the tests of the text `inner`."""
    files = folder / "test_inner.py", folder / "test_outer.py"
    files[0].write_text(inner)
    files[1].write_text(OUTER.format(inner=files[0], options=options or [], seconds=seconds))
    (folder / "pytest.ini").write_text("[pytest]\nverbosity_subtests = 1\n")
    command = [sys.executable, "-m", "pytest", str(files[1]), "-ra", *more.split()]
    done = subprocess.run(
        command, cwd=folder, env=child_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == (1 if " failed" in done.stdout.splitlines()[-1] else 0)
    return done.stdout


@pytest.mark.parametrize(
    ("inner", "outer"), [([], ""), (["-n", "2"], "-n 2")], ids=["alone", "two-workers"]
)
def test_each_test_of_the_child_is_reported_by_its_name(
    inner: list[str], outer: str, tmp_path: Path
) -> None:
    text = outer_run(tmp_path, GOOD + BAD + SKIPPED + NO_FIXTURE, inner, more=outer)

    assert "SUBFAILED[test_inner.py::test_bad]" in text
    assert "assert (1 + 1) == 3" in text
    assert "SUBFAILED[test_inner.py::test_asks]" in text
    assert "fixture 'nobody' not found" in text
    assert "no wings" in text
    assert "contains 2 failed subtests" in text
    assert "3 failed, 1 skipped, 1 subtests passed" in text  # the third is the outer test


def test_a_child_that_passes_passes(tmp_path: Path) -> None:
    assert "1 passed, 1 subtests passed" in outer_run(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("inner", "seconds", "says"),
    [(ENDS, 60, "the process that ran it ended"), (HANGS, 10, "not done after the 10 s")],
    ids=["ends", "hangs"],
)
def test_the_test_in_which_the_process_ends_or_hangs_is_named(
    inner: str, seconds: int, says: str, tmp_path: Path
) -> None:
    text = outer_run(tmp_path, GOOD + inner, seconds=seconds)

    assert "SUBFAILED[test_inner.py::test_" in text
    assert says in text


@pytest.mark.parametrize(
    ("inner", "says"), [("import nobody\n", "No module named 'nobody'"), ("", "no test ran")]
)
def test_a_child_that_runs_no_test_fails(inner: str, says: str, tmp_path: Path) -> None:
    assert says in outer_run(tmp_path, inner)
