"""Holds Ctrl-C back while something is done that must be whole, and lets it through where it may
break off. Knows signals and no model.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Made = TypeVar("Made")


class _Waiting:
    """A handler of SIGINT that keeps the first one; a second one goes to the handler before.

    While it is `open`, the first one goes to the handler before, too.
    """

    def __init__(self, former: Callable[[int, FrameType | None], Any]) -> None:
        self.former = former
        self.came = False
        self.open = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        was_open, self.open = self.open, False
        if was_open or self.came:
            self.came = False
            self.former(number, frame)  # raises, unless it is a handler of the user's
            self.open = was_open
        else:
            self.came = True

    def hand_over(self) -> None:
        """Raise the interrupt that came while it was held back, if any."""
        if self.came:
            self.came = False
            self.former(signal.SIGINT, None)


class Held:
    """What `interrupts_held` yields."""

    def __init__(self, waiting: _Waiting | None, was_open: bool) -> None:
        self._waiting, self._was_open = waiting, was_open

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """While the context lasts, a KeyboardInterrupt is raised or waits as it would outside of
        `interrupts_held`."""
        if self._was_open:
            with interrupts_pass():
                yield
        else:
            yield


@contextmanager
def interrupts_held() -> Iterator[Held]:
    """While the context lasts, a KeyboardInterrupt waits, and is raised at the end of the outermost
    such context, or where `interrupts_pass` lets it through. A second Ctrl-C is raised at once.

    Does nothing in another thread than the main one, which alone receives signals, and where SIGINT
    has no handler in Python. Also a decorator.
    """
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield Held(None, False)
        return
    if isinstance(former, _Waiting):
        was_open, former.open = former.open, False
        try:
            yield Held(former, was_open)
        finally:
            former.open = was_open
        if was_open:
            former.hand_over()
        return
    waiting = _Waiting(former)
    signal.signal(signal.SIGINT, waiting)
    try:
        yield Held(waiting, True)
    finally:
        signal.signal(signal.SIGINT, former)
        waiting.hand_over()


@contextmanager
def interrupts_pass() -> Iterator[None]:
    """While the context lasts, a KeyboardInterrupt is raised at once, also in `interrupts_held`.

    For work that may take long and can break off anywhere, since those who asked for it undo what
    was done: a forward pass, a file that is written beside the old one. One that waits is raised
    now.
    """
    handler = signal.getsignal(signal.SIGINT)
    inside = threading.current_thread() is threading.main_thread()
    if not inside or not isinstance(handler, _Waiting):
        yield
        return
    handler.hand_over()
    was_open, handler.open = handler.open, True
    try:
        yield
    finally:
        handler.open = was_open and handler.open


def made_whole(make: Callable[[], Made], undo: Callable[[Made], object]) -> Made:
    """What `make` returns, with interrupts held. Where one came meanwhile, `undo` takes back what
    was made, since nobody gets to hold it."""
    made = None
    try:
        with interrupts_held():
            made = make()
            return made
    except BaseException:
        if made is not None:
            undo(made)
        raise
