"""`mend-parallel run SCRIPT ARGS`: the script runs as python would run it, with its own arguments,
path, exit code and errors, and with `replace_mend()` in force. tests/hosts/test_run.py has what
EasyEdit then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from easyedit_mend_parallel import restore_mend
from easyedit_mend_parallel.cli.app import app
from easyedit_mend_parallel.easyedit.registration import _joined

TELLS = """
import json, os, sys
import beside
if __name__ == "__main__":
    print(json.dumps({
        "argv": sys.argv, "path": sys.path[0], "file": __file__, "rank": os.environ.get("RANK"),
        "beside": beside.NAME,
    }))
"""


@pytest.fixture(autouse=True)
def nothing_replaced() -> Iterator[None]:
    yield
    restore_mend()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("NAME = 'a module beside the script'")
    path = tmp_path / "script.py"
    path.write_text(TELLS)
    return path


def run(*arguments: Any) -> Result:
    sys.modules.pop("beside", None)
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def replaced_with() -> dict[str, Any] | None:
    return _joined.replacement


def test_a_script_sees_its_own_arguments_and_folder(script: Path) -> None:
    argv, path = list(sys.argv), list(sys.path)

    result = run(script, "--editing_method", "MEND", "--dtype", "none of ours", "--help")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    given = [str(script), "--editing_method", "MEND", "--dtype", "none of ours", "--help"]
    assert told["argv"] == given
    assert (told["path"], told["file"]) == (str(script.parent), str(script))
    assert told["beside"] == "a module beside the script"
    assert (sys.argv, sys.path) == (argv, path)
    assert replaced_with() == {}


def test_a_module_runs_by_its_name(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run("-m", "script", "one")

    told = json.loads(result.stdout)
    assert told["argv"][1:] == ["one"]
    assert told["path"] == str(tmp_path)


def test_options_before_the_script_are_hyperparameters(script: Path) -> None:
    options = ["--device-map", "{model: 0, lm_head: cpu}", "--dtype", "bfloat16"]
    options += ["--set", "network_device=cpu", "--set", "model_kwargs={max_memory: {0: 1GiB}}"]

    assert run(*options, script).exit_code == 0

    assert replaced_with() == {
        "network_device": "cpu",
        "model_kwargs": {
            "max_memory": {0: "1GiB"},
            "device_map": {"model": 0, "lm_head": "cpu"},
            "dtype": "bfloat16",
        },
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "there is no script 'nowhere.py'"),
        (
            ["--set", "aply=output", __file__],
            "'aply' is not a hyperparameter; did you mean 'apply'",
        ),
        (["--set", "apply", __file__], "--set 'apply' has no value: write --set apply=VALUE"),
        (["--device-map", "{model: 0", __file__], "--device-map: '{model: 0' cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_script_starts(
    arguments: list[str], message: str
) -> None:
    result = run(*arguments)

    assert result.exit_code != 0
    assert message in str(result.exception)
    assert replaced_with() is None


def test_a_scripts_exit_code_is_the_commands(tmp_path: Path) -> None:
    script = tmp_path / "exits.py"
    script.write_text("import sys; sys.exit(7)")

    assert run(script).exit_code == 7


def test_a_scripts_error_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("from easyedit_mend_parallel import TargetError\nraise TargetError('so')\n")

    result = run(script)

    assert result.exit_code == 1
    shown = result.stderr.splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert "fails.py" in shown[1]
    assert shown[-1] == "easyedit_mend_parallel.errors.TargetError: so"
    assert "runpy" not in result.stderr


def test_torchrun_starts_it_as_a_module(script: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "easyedit_mend_parallel", "run", str(script), "one"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)

    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["rank"] for one in told} == {"0", "1"}
    assert [one["argv"] for one in told] == [[str(script), "one"]] * 2
