"""The example of docs/plugins.md, installed by pip into an environment of its own and run by
BaseEditor in a process that starts there."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from fresh_process import Started

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "easyedit-gradient-steps"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has what this one has, and the example."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "what_this_one_has.pth").write_text("\n".join(lines), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-deps", "--no-build-isolation", "--no-index", str(EXAMPLE)]
    done = subprocess.run(pip, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-5000:]
    return python


@pytest.fixture(scope="module")
def found(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    return Started("with_the_example", folder, python=python).report()


def test_the_editor_runs_the_examples_method_and_undoes_it_to_the_bit(
    found: dict[str, Any],
) -> None:
    assert found["method"] == "easyedit_gradient_steps.method"
    assert found["pre"] < 1.0
    assert found["post"] == 1.0
    assert found["kept"] == found["targets"]
    assert found["undone"] == found["measured"] == []


def test_the_examples_method_edits_in_batches_as_ft_does(found: dict[str, Any]) -> None:
    assert found["batch"] == [1.0, 1.0]


def test_the_examples_store_keeps_the_backups_of_this_packages_method(
    found: dict[str, Any],
) -> None:
    assert found["files_before"] == 0
    assert found["files"] == len(found["targets"])
    assert found["after_mend"] == []


def test_mend_parallel_plugins_lists_what_the_example_offers(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-c", "from easyedit_mend_parallel.cli import main; main()", "plugins", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    offers = {
        one["plugin"]: (one["offers_methods"], one["offers_stores"])
        for one in json.loads(done.stdout)["plugins"]
    }
    assert offers["gradient_steps"] == (True, False)
    assert offers["disk_backups"] == (False, True)
    assert offers["mend_parallel"] == (True, False)
