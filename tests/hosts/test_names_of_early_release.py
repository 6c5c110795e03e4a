"""The release 0.0.1.dev0 cannot be imported on today's transformers; with this package first it
can, and nothing of EasyEdit or transformers' models is imported before its time."""

from __future__ import annotations

from typing import Any

import pytest
from fresh_process import Started
from host_toys import TODAY

from easyedit_mend_parallel.easyedit.early_release import GONE

pytestmark = pytest.mark.skipif(TODAY, reason="today's EasyEdit needs none of these names")


def test_the_release_alone_misses_names_that_left_transformers(
    processes: dict[str, Started],
) -> None:
    error = str(processes["without_this_package"].report()["error"])
    assert any(f"'{name}' from 'transformers.modeling_utils'" in error for name in GONE), error


def test_with_this_package_first_the_release_is_imported(found: dict[str, Any]) -> None:
    assert "MEND_PARALLEL" in found["methods"]
    assert set(found["names_that_left"]) == set(GONE)


def test_nothing_is_imported_before_its_time(found: dict[str, Any]) -> None:
    assert found["imported_by_ours"] == []


def test_a_name_that_transformers_has_no_more_says_so_when_it_is_called(
    found: dict[str, Any],
) -> None:
    answers = found["names_that_left"]
    assert "works" in answers.values()
    for name, answer in answers.items():
        assert answer == "works" or f"transformers no longer has {name}" in answer


def test_a_name_that_transformers_still_has_elsewhere_is_that_one(found: dict[str, Any]) -> None:
    for name in found["names_elsewhere"]:
        assert found["names_that_left"][name] == "works"
