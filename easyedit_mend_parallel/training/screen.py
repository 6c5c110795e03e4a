"""Prints a training run to the terminal: progress bars, and one line for each evaluation.

Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from easyedit_mend_parallel.evaluation.measures import Scores

Item = TypeVar("Item")


class Screen:
    """Bars and lines on stderr; none with `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True, quiet=quiet),
            disable=quiet,
        )

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[None]:
        """While the context lasts, a bar shows the progress of the run (see `show`)."""
        self._run = self._bars.add_task("training", total=total, completed=done, figures="")
        with self._bars:
            yield

    def show(self, step: int, figures: Mapping[str, float] | None = None) -> None:
        self._bars.update(self._run, completed=step)
        if figures is not None:
            said = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self._bars.update(self._run, figures=said)

    def track(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        """The items, with a bar that shows how many are done."""
        with self.counting(what, len(items)) as told:
            for done, item in enumerate(items, start=1):
                yield item
                told(done)

    def count(self, done: Iterable[int], total: int, what: str) -> None:
        """Exhaust `done`, which yields how many of `total` are done."""
        with self.counting(what, total) as told:
            for number in done:
                told(number)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """While the context lasts, a function to call with the number of `total` that are done."""
        running = self._bars.live.is_started
        if not running:
            self._bars.start()
        task = self._bars.add_task(what, total=total, figures="")
        try:
            yield lambda done: self._bars.update(task, completed=done)
        finally:
            self._bars.remove_task(task)
            if not running:
                self._bars.stop()

    def scores(self, step: int, scores: Scores) -> None:
        found = "  ".join(
            f"{name} {score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"
            for name, score in scores.scores.items()
        )
        self._bars.console.print(f"step {step}  {scores.split}: {found}", highlight=False)
