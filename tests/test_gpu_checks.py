"""What `make gpu` runs is rehearsed on a CPU: every check, one measurement, and the table that says
what passed, failed, or was not run. Nothing is claimed of an accelerator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu.__main__ as runner
import pytest
import torch
from benchmarks import edits
from benchmarks.edits import HOST, PACKAGE, measured
from benchmarks.shapes import SHAPES
from gpu.checks import CHECKS, equals_oracle
from gpu.checks import __name__ as checks_module
from toys import toy_model


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_passes_on_a_cpu(name: str) -> None:
    found = CHECKS[name]("cpu")
    assert found["edits"] > 0 or name == "several_devices"


def test_a_wrong_edit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def another(model: Any) -> Any:
        with torch.no_grad():
            model.model.layers[3].mlp.down_proj.weight.mul_(1.01)
        return model

    equals_oracle(toy_model("llama"), lambda model: model)
    with pytest.raises(AssertionError, match="off by"):
        equals_oracle(toy_model("llama"), another)


def test_a_measurement_has_the_package_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "find_spec", lambda _: None)  # as where EasyEdit is not installed
    found = measured(SHAPES["tiny"], torch.float16, None, rounds=1)
    assert found["one edit"][PACKAGE]["ratio"]["median"] > 0
    assert found["a batch of 8"][PACKAGE]["ratio"]["median"] == 1
    assert HOST not in found["one edit"]


def test_the_run_says_what_passed_failed_and_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    def rows(*_: Any) -> list[runner.Row]:
        return [
            runner.Row("fits", (checks_module, "several_devices", "cpu")),
            runner.Row("breaks", (checks_module, "no such check", "cpu")),
            runner.Row("lacks", (checks_module, "scopes", "cpu"), packages=("no_such_package",)),
            runner.Row("too large", (checks_module, "scopes", "cpu"), needs=1 << 60),
        ]

    monkeypatch.setattr(runner, "rows", rows)
    out = tmp_path / "gpu.json"
    arguments = ["gpu", "--device", "cpu", "--shapes", "tiny", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)

    assert runner.main() == 1

    found = {one["name"]: one for one in json.loads(out.read_text())["rows"]}
    assert found["fits"]["result"] == "not run"  # a CPU has no second device
    assert found["breaks"]["result"] == "failed"
    assert "KeyError" in found["breaks"]["why"]
    assert found["lacks"]["why"] == "no_such_package is not installed"
    assert "GiB" in found["too large"]["why"]
    assert "| breaks | failed: KeyError" in capsys.readouterr().out


def test_nothing_is_begun_without_time() -> None:
    row = runner.Row("late", (checks_module, "scopes", "cpu"))
    assert runner.run(row, "cpu", until=0.0).why == "no time was left"


def test_every_row_is_a_module_with_its_arguments() -> None:
    found = list(runner.rows("cpu", ["tiny", "llama-2-7b"], None))
    names = [row.name for row in found]
    assert len(set(names)) == len(names) == len(CHECKS) + 2 * 3 * 4
    needs = {row.name: row.needs for row in found}
    assert 13e9 < needs["time, llama-2-7b, bfloat16"] / runner.SHARE < 14e9
    assert needs["time, llama-2-7b, float32"] == 2 * needs["time, llama-2-7b, bfloat16"]


def test_without_an_accelerator_the_rehearsal_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "first_accelerator", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "--device cpu --shapes tiny" in capsys.readouterr().err
