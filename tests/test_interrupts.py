"""Ctrl-C at any line of the ledger leaves a change wholly in the model or wholly out of it, and a
later rollback gives the base's bits.

A real SIGINT is raised before a line of `weights/ledger.py` or `weights/transaction.py` runs.
"""

from __future__ import annotations

import copy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import (
    OBSERVED,
    REQUEST,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
)

from easyedit_mend_parallel import MendParallel, rollback_all
from easyedit_mend_parallel.files.interrupts import interrupts_held
from easyedit_mend_parallel.weights import ledger, transaction
from easyedit_mend_parallel.weights.ledger import Ledger


@pytest.fixture(autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Python's own handler, also where a shell that runs the tests ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


POINTS = 30
"""At about so many lines of each kind of change, evenly spread."""
FILES = {ledger.__file__, transaction.__file__}


class At:
    """Raises SIGINT before the `number`-th line of `FILES` runs; counts the lines."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.lines = 0

    def __call__(self, frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.left:
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(act: Callable[[], Any], number: int) -> tuple[bool, int]:
    """Whether `act` ended with a KeyboardInterrupt, and how many lines it ran."""
    at = At(number)
    former = sys.gettrace()
    sys.settrace(at)
    try:
        act()
    except KeyboardInterrupt:
        return True, at.lines
    finally:
        sys.settrace(former)
    return False, at.lines


def targets_of(model: Any) -> list[str]:
    """Two of the toy's targets, in different blocks."""
    names = toy_targets(model)
    return [names[0], names[-1]]


class Edited:
    """A toy model with three edits that add up, and the bits at each stage."""

    def __init__(self, base: Any, network: Any, apply: str) -> None:
        self.model = copy.deepcopy(base)
        names = targets_of(self.model)
        hparams = toy_hparams(names, sequence="add", on_worse="ignore", apply=apply)
        self.editor = MendParallel(self.model, tokenizer_for(self.model), hparams, network=network)
        self.results = [self.editor.edit(request) for request in (REQUEST, *OBSERVED[:2])]

    def logits(self) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model(input_ids=torch.arange(4, 12)[None]).logits
        return found

    def act(self, name: str) -> Callable[[], Any]:
        change = self.results[0]
        return {
            "change": lambda: Ledger.of(self.model).change(
                list(change.targets.values()), change.updates, self.editor.apply
            ),
            "undo the last": self.results[2].rollback,
            "undo one in the middle": self.results[1].rollback,
            "undo all": lambda: rollback_all(self.model),
        }[name]


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize("name", ["change", "undo the last", "undo one in the middle", "undo all"])
def test_an_interrupt_at_any_line_leaves_a_change_whole(name: str, apply: str) -> None:
    base = toy_model("llama")
    network = toy_network(base, tokenizer_for(base), targets_of(base))
    done = Edited(base, network, apply)
    before = done.logits()
    _, lines = interrupted(done.act(name), 0)
    after = done.logits()
    rollback_all(done.model)
    plain = done.logits()
    assert lines > 10
    assert not same_bits(before, after)

    for number in range(1, lines + 1, max(1, lines // POINTS)):
        tried = Edited(base, network, apply)
        interrupted(tried.act(name), number)
        now = tried.logits()
        assert same_bits(now, before) or same_bits(now, after), f"line {number} of {lines}"
        tried.editor.edit(REQUEST)
        rollback_all(tried.model)
        assert same_bits(tried.logits(), plain), f"line {number} of {lines}"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_waits_for_the_end_of_the_outermost_context() -> None:
    ran = []

    @interrupts_held()
    def outer() -> None:
        inner()
        ran.append("outer")

    @interrupts_held()
    def inner() -> None:
        signal.raise_signal(signal.SIGINT)
        ran.append("inner")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert ran == ["inner", "outer"]


def test_a_second_interrupt_is_raised_at_once() -> None:
    ran = []

    @interrupts_held()
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        ran.append("after the first")
        signal.raise_signal(signal.SIGINT)
        ran.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert ran == ["after the first"]


def test_in_another_thread_nothing_is_held() -> None:
    found = []

    def run() -> None:
        with interrupts_held():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
