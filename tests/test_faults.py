"""An exception or Ctrl-C at a point of what is done to a model leaves the state before or after: a
few points of each kind. `make attack` tries tens of thousands.
"""

from __future__ import annotations

import pytest
from attack.faults import KINDS, Tried, chosen, own_temporary_folder
from attack.scenes import SCENES

POINTS = 2
COMBINATIONS = [
    pytest.param(name, kind, id=f"{name}, {kind}")
    for number, name in enumerate(SCENES)
    for place, kind in enumerate(KINDS)
    if place == (0 if number % 3 == 0 else 1 + number % (len(KINDS) - 1))
]
"""One kind of fault for each scene; Ctrl-C at any line is also tried in test_interrupts.py."""


@pytest.mark.parametrize(("name", "kind"), COMBINATIONS)
def test_a_fault_leaves_the_state_before_or_the_state_after(name: str, kind: str) -> None:
    with own_temporary_folder() as folder:
        tried = Tried(name, kind, folder / "temporary" / "root")
        for number in chosen(tried.points, POINTS):
            tried.at(number)

    assert not tried.wrong


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        # requires_grad of offloaded weights, which accelerate makes anew at each load
        ("edit in RAM", "Ctrl-C at a line", 0.7),
        # the hook was gone, and the update counted as hanging
        ("undo from the middle of outputs", "MemoryError at a line", 0.4),
        ("rollback_all", "MemoryError at a line", 0.5),
        # the file of the squashed edit stayed
        ("journal: squash", "Ctrl-C at a line", 0.5),
        # hooks of a training run stayed on the model
        ("training step", "Ctrl-C at a line", 0.08),
        # an edit that was written stayed in, and nobody held it
        ("edit", "RuntimeError at a line", 0.95),
        ("batch, least squares", "RuntimeError at a line", 0.96),
        # the saved edits of outputs stayed in the weights
        ("save_edited of outputs", "RuntimeError at an operation", 0.95),
        # undone in part
        ("undo in a sequence", "RuntimeError at a line", 0.19),
        # a hook without an update
        ("edit of outputs", "MemoryError at a line", 0.905),
        # the layer stayed loaded, so the edit could not be undone
        ("edit in RAM", "RuntimeError at an operation", 0.865),
    ],
)
def test_what_was_found_stays_mended(name: str, kind: str, where: float) -> None:
    with own_temporary_folder() as folder:
        tried = Tried(name, kind, folder / "temporary" / "root")
        for number in range(int(where * tried.points), int(where * tried.points) + 20):
            tried.at(number)

    assert not tried.wrong
