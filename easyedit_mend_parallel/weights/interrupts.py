"""Holds Ctrl-C back while a model is in the middle of a change.

Knows signals and no model.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Waiting:
    """A handler of SIGINT that keeps the first one; a second one goes to the handler before."""

    def __init__(self, former: Callable[[int, FrameType | None], Any]) -> None:
        self.former = former
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            self.former(number, frame)
        self.came = True


@contextmanager
def interrupts_held() -> Iterator[None]:
    """While the context lasts, a KeyboardInterrupt waits, and is raised at the end of the outermost
    such context. A second Ctrl-C is raised at once.

    Does nothing in another thread than the main one, which alone receives signals, and where SIGINT
    has no handler in Python. Also a decorator.
    """
    former = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(former) or isinstance(former, _Waiting):
        yield
        return
    waiting = _Waiting(former)
    signal.signal(signal.SIGINT, waiting)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if waiting.came:
            former(signal.SIGINT, None)
