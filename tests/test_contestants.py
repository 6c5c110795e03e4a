"""The comparison with other methods takes layers at the same depth, and shows every figure once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "quality"))

from contestant_settings import METHODS, mapped, mapped_all
from contestants_shown import cell, rows, table


@pytest.mark.parametrize(
    ("layer", "of", "expected"), [(0, 32, 0), (5, 32, 5), (27, 32, 25), (27, 28, 29), (17, 48, 11)]
)
def test_a_layer_is_taken_at_the_same_share_of_the_depth(
    layer: int, of: int, expected: int
) -> None:
    assert mapped(layer, of) == expected


def test_two_layers_that_fall_together_are_taken_once() -> None:
    assert mapped_all([4, 5, 6, 7, 8], 32, 30) == [4, 5, 6, 7, 8]
    assert mapped_all([40, 41, 42], 48, 12) == [10, 11]


def test_every_setting_tried_replaces_fields_and_the_first_is_chosen() -> None:
    for method in METHODS.values():
        assert method.fields() == method.fields(0) == {**method.changed, **method.tried[0]}


def test_results_are_shown_by_the_number_of_edits() -> None:
    figure = [0.957, 0.9, 1.0, 40]
    one = {"edit": figure, "seconds an edit": 1.25}
    results = {"unedited": {"edit": figure}, "A": {"100": one, "single": one}, "B": {"single": one}}
    found = rows(results | {"C": {"error": "it does not run"}})
    assert {part: [name for name, _ in some] for part, some in found.items()} == {
        "single": ["A", "B"],
        "100": ["A"],
    }
    shown = table(results, ["edit", "rephrase"]).splitlines()
    assert shown[2] == "| single | A | .96 [.90, 1.00] |  | 1.2 | 40 |"
    assert cell([0.0, 0.0, 0.004, 3]) == "0 [0, 0]"
