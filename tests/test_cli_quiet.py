"""The command line is quick and quiet: it reads its arguments before torch is imported, and shows a
progress bar only for work that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import easyedit_mend_parallel
from easyedit_mend_parallel.cli import where
from easyedit_mend_parallel.cli.app import app


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = "[name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules]"


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["--version"]])
def test_arguments_are_read_before_torch_is_imported(arguments: list[str]) -> None:
    code = f"""
import sys
from easyedit_mend_parallel.cli import main
sys.argv[1:] = {arguments!r}
try:
    main()
finally:
    print({HEAVY})
"""
    assert python(code).splitlines()[-1] == "[]"


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = """
import sys
import easyedit_mend_parallel as package
print([name for name in package.__all__ if name not in dir(package)])
from easyedit_mend_parallel import *
print([name for name in package.__all__ if globals()[name].__name__ != name])
"""
    assert python(code).splitlines() == ["[]", "[]"]
    with pytest.raises(AttributeError, match="no attribute 'MendParalel'"):
        easyedit_mend_parallel.MendParalel  # noqa: B018


@pytest.mark.parametrize(("work", "shown"), [(0.0, False), (0.5, True)])
def test_a_progress_bar_is_shown_for_work_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: float, shown: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(where, "SILENT_SECONDS", 0.1 if shown else 60.0)

    with where.progress(quiet=False) as bars:
        bars.add_task("edits", total=3)
        time.sleep(work)

    out, err = capsys.readouterr()
    assert out == ""
    assert ("edits" in err) is shown
    assert err == "" or shown


@pytest.mark.parametrize("command", ["plugins", "run"])
def test_bars_of_transformers_wait_too_but_not_those_of_a_users_script(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"TQDM_DELAY": ""})
    del os.environ["TQDM_DELAY"]

    CliRunner().invoke(app, [command, "nowhere.py"] if command == "run" else [command])

    assert os.environ.get("TQDM_DELAY") == (None if command == "run" else "2.0")
