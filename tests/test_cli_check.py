"""`mend-parallel check`, `demo` and `plugins`: what they print, as tables and as JSON, and with
which exit code they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plan_toys import Toy
from typer.testing import CliRunner, Result

import easyedit_mend_parallel
from easyedit_mend_parallel.cli.app import app, main
from easyedit_mend_parallel.plugins import manager as plugins
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host, hookimpl
from easyedit_mend_parallel.plugins.manager import offers, plugin_manager


@pytest.fixture
def llama(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def run(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(one) for one in arguments])


def printed(*arguments: Any) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


# --- check


def test_a_file_that_works_is_shown_and_exits_with_0(llama: Toy) -> None:
    shown = run("check", llama.config())
    assert shown.exit_code == 0
    for words in ("LlamaForCausalLM", *llama.targets, "16 × 24", "resident", "no problems"):
        assert words in shown.stdout


def test_each_problem_is_one_line_and_the_exit_code_is_1(llama: Toy) -> None:
    config = llama.config(rnak=1, inner_params=[*llama.targets, "nothing.weight"])
    shown = run("check", config)
    assert shown.exit_code == 1
    lines = [line for line in shown.stdout.splitlines() if line.startswith("problem ")]
    assert len(lines) == 3
    assert "did you mean 'rank'?" in lines[0]
    assert "3 problems" in shown.stdout


def test_max_memory_plans_for_another_machine(llama: Toy) -> None:
    total = sum(weight.nbytes for weight in llama.model.parameters())
    shown = run("check", llama.config(), "--max-memory", f"0={total // 2000}KB,cpu=1MiB")
    assert shown.exit_code == 0
    assert "GPU 0: model.embed_tokens" in shown.stdout


def test_json_has_what_the_tables_have(llama: Toy) -> None:
    about = printed("check", llama.config(), "--max-memory", "0=1MiB,cpu=1MiB")
    assert [one["target"]["name"] for one in about["targets"]] == llama.targets
    assert about["device_map"] == {"": 0}
    assert (about["archive_fits"], about["problems"]) == (True, [])
    assert about["network"]["place"] == 0
    (here,) = about["memory"]
    assert here["edit"] == here["backups"] + here["network"] + here["rows"]


def test_json_of_a_broken_file_lists_every_problem_and_exits_with_1(llama: Toy) -> None:
    config = llama.config(rnak=1, apply="wieght", archive="nowhere")
    shown = run("check", config, "--json")
    assert shown.exit_code == 1
    assert len(json.loads(shown.stdout)["problems"]) == 3


@pytest.mark.parametrize("arguments", [("nowhere.yaml",), ("x.yaml", "--max-memory", "gpu=1GiB")])
def test_what_cannot_be_read_at_all_is_one_line_on_stderr(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mend-parallel", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    assert said.err.startswith("HparamsError: ")
    assert len(said.err.splitlines()) == 1


# --- demo


def test_the_demo_is_given_its_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def ran(arguments: list[str]) -> int:
        asked.append(arguments)
        return len(asked) - 1

    monkeypatch.setattr("easyedit_mend_parallel.demo.__main__.main", ran)
    assert run("demo").exit_code == 0
    assert run("demo", "--placement", "cpu+disk").exit_code == 1
    assert asked == [[], ["--placement", "cpu+disk"]]


def test_a_placement_that_the_demo_does_not_have_is_a_usage_error() -> None:
    assert run("demo", "--placement", "nowhere").exit_code == 2


def test_the_demo_says_that_it_needs_easyedit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    shown = run("demo", "--placement", "cpu+disk")
    assert shown.exit_code == 1
    assert "this demo needs easyeditor, which is not here" in shown.stdout.replace("\n", " ")


# --- plugins, version


def test_the_packages_own_plugin_is_listed_with_its_version() -> None:
    about = printed("plugins")
    ours = next(one for one in about["plugins"] if one["plugin"] == "mend_parallel")
    assert ours["package"] == "easyedit-mend-parallel"
    assert ours["version"] == easyedit_mend_parallel.__version__
    assert (ours["offers_methods"], ours["methods"]) == (True, [])
    assert set(about["own_stores"]) >= {"resident", "ram", "overlay", "output", "sharded"}
    assert "mend_parallel" in run("plugins").stdout


def test_a_plugin_is_listed_with_what_it_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_plugin")
    vars(module)["weight_store"] = hookimpl(specname="weight_store")(lambda place: None)
    vars(module)["editing_method"] = hookimpl(specname="editing_method")(
        lambda host: EditingMethod("MINE", print)  # type: ignore[arg-type]
    )
    plugin_manager().register(module)
    try:
        host = Host(ModuleType(__name__))
        host.package.__file__ = __file__
        one = next(one for one in offers(host) if one.plugin == "a_plugin")
        alone = next(one for one in offers() if one.plugin == "a_plugin")
    finally:
        plugin_manager().unregister(module)
    assert (one.methods, one.offers_stores, one.package) == (("MINE",), True, "")
    assert (alone.methods, alone.offers_methods) == ((), True)


def test_the_version_is_the_installed_packages() -> None:
    assert run("--version").stdout.strip() == easyedit_mend_parallel.__version__
    assert plugins.metadata.version("easyedit-mend-parallel") == easyedit_mend_parallel.__version__
