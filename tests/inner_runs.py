"""Passes on what the tests of a child process found: the child writes a line for each of its tests,
and the test that started it reports each line as a subtest. Knows nothing of what is tested.

The child is a pytest that is started with `-p inner_runs`, or any process that calls `record`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

RECORDS = "INNER_RUN_RECORDS"
"""The environment variable that names the folder in which a child writes its records."""
TESTS = Path(__file__).parent
STARTED, PASSED, SKIPPED, FAILED = OUTCOMES = ("started", "passed", "skipped", "failed")
"""What a record can say of a test, from the least to the most serious."""


# In the child


def record(name: str, outcome: str, text: str = "") -> None:
    """Write that the test `name` has this outcome, if an outer test asks for it."""
    if folder := os.environ.get(RECORDS):
        line = json.dumps({"name": name, "outcome": outcome, "text": text})
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def pytest_configure(config: pytest.Config) -> None:
    # Under xdist the process that hands out the tests hears of all of them, and alone writes.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder())


class _Recorder:
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        record(nodeid, STARTED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            record(report.nodeid, report.outcome, _text(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            record(report.nodeid, FAILED, _text(report))


def _text(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, or how it failed."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return "\n".join([report.longreprtext, *(f"{name}\n{text}" for name, text in report.sections)])


# In the outer test


@dataclass
class _Found:
    outcome: str
    text: str = ""


def child_environment(**variables: str) -> dict[str, str]:
    """What a child finds in its environment: `variables`, and all that the outer pytest did not put
    there. Its modules are those that the outer one imports."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(TESTS.parent), str(TESTS), *found.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(str(Path(path).absolute()) for path in paths if path)
    return found | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables


def run(
    command: Sequence[str],
    subtests: pytest.Subtests,
    *,
    folder: Path,
    environment: Mapping[str, str],
    seconds: float,
    records: Path,
) -> None:
    """Run `command` in `folder` and report each of its tests. Where it fails otherwise, or takes
    more than `seconds`, the test that called fails with the end of the output."""
    records.mkdir()
    child = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, RECORDS: str(records)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ended = "the process that ran it ended"
    try:
        output, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = f"it was not done after the {seconds:.0f} s that all tests have"
        child.terminate()  # torchrun and xdist then end the processes that they started
        output, _ = child.communicate(timeout=60)
    found = recorded(records)
    for name, one in found.items():
        with subtests.test(name):
            if one.outcome == STARTED:
                pytest.fail(f"{ended}:\n{output[-10_000:]}", pytrace=False)
            if one.outcome == SKIPPED:
                pytest.skip(one.text)
            if one.outcome == FAILED:
                pytest.fail(one.text, pytrace=False)
    assert found, f"no test ran:\n{output[-10_000:]}"
    known = any(one.outcome in (STARTED, FAILED) for one in found.values())
    assert child.returncode == 0 or known, output[-10_000:]


def recorded(records: Path) -> dict[str, _Found]:
    """Each test with the most serious outcome that a process recorded of it."""
    found: dict[str, _Found] = {}
    for file in sorted(records.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, outcome, text = json.loads(line).values()
            one = found.setdefault(name, _Found(outcome, text))
            if OUTCOMES.index(outcome) > OUTCOMES.index(one.outcome):
                one.outcome, one.text = outcome, text
            elif outcome == one.outcome and text not in one.text:
                one.text += f"\n{text}"
    return found
