"""Any package adds an editing method to EasyEdit: by an entry point, or by registering a module
before EasyEdit is imported. An offer that cannot be used is an error that names its plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import easyeditor
import pytest
from easyeditor.util.alg_dict import ALG_DICT
from fresh_process import Started, nothing, plugin

from easyedit_mend_parallel import PluginError
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host, hookimpl
from easyedit_mend_parallel.plugins.manager import editing_methods, plugin_manager


def test_all_offers_are_methods_of_easyedit(found: dict[str, Any]) -> None:
    assert set(found["methods"]) >= {"MEND_PARALLEL", "WATCH", "FORGET", "MEND", "FT"}
    assert "" not in found["methods"]


def test_asking_plugins_does_not_import_easyedit(found: dict[str, Any]) -> None:
    assert found["imported_by_ours"] == []


def test_a_registered_plugins_method_is_run_by_the_editor(found: dict[str, Any]) -> None:
    assert found["watched"] == [["the capital of France is"]]
    assert found["watched_metrics"] == 1


def test_a_method_is_treated_as_the_one_that_it_behaves_like(found: dict[str, Any]) -> None:
    assert found["watch_in_batches"] is False  # it says of none
    assert found["forgot"] == ["lm_head.weight"]  # in a batch, as FT may


def test_a_method_that_came_by_an_entry_point_is_restored_by_easyedit(
    found: dict[str, Any],
) -> None:
    assert found["forgot_and_restored"] == []


def test_this_packages_method_works_beside_others(found: dict[str, Any]) -> None:
    assert found["edited"] == found["targets"]


def test_a_name_that_easyedit_has_itself_is_refused(processes: dict[str, Started]) -> None:
    error = processes["with_a_name_that_is_taken"].report()["error"]
    assert "'ROME', which EasyEdit has itself" in str(error)


@contextmanager
def registered(*modules: ModuleType) -> Iterator[None]:
    for module in modules:
        plugin_manager().register(module)
    try:
        yield
    finally:
        for module in modules:
            plugin_manager().unregister(module)


def offering(offer: Any) -> ModuleType:
    module = ModuleType("a_plugin_that_errs")
    module.editing_method = hookimpl(specname="editing_method")(  # type: ignore[attr-defined]
        lambda host: offer
    )
    return module


HOST = Host(easyeditor)


def test_this_packages_method_is_offered_by_the_same_hook() -> None:
    assert [method.name for method in editing_methods(HOST)] == ["MEND_PARALLEL"]
    assert "MEND_PARALLEL" in ALG_DICT


@pytest.mark.parametrize(
    "offer",
    ["WATCH", print, ("WATCH", print), EditingMethod("WATCH", None), EditingMethod],  # type: ignore[arg-type]
    ids=repr,
)
def test_what_is_no_editing_method_is_refused_with_the_plugins_name(offer: Any) -> None:
    with (
        registered(offering(offer)),
        pytest.raises(PluginError, match="a_plugin_that_errs offers"),
    ):
        editing_methods(HOST)


def test_two_methods_of_one_name_are_refused() -> None:
    with (
        registered(plugin("MEND_PARALLEL")),
        pytest.raises(PluginError, match=r"'MEND_PARALLEL', one of them plugin_of_MEND_PARALLEL"),
    ):
        editing_methods(HOST)
    with (
        registered(plugin("WATCH"), offering(EditingMethod("WATCH", nothing))),
        pytest.raises(PluginError, match="two plugins offer a method named 'WATCH'"),
    ):
        editing_methods(HOST)


def test_a_plugin_may_offer_nothing_to_a_host() -> None:
    with registered(offering(None)):
        assert [method.name for method in editing_methods(HOST)] == ["MEND_PARALLEL"]
