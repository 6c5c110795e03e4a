"""Raises an exception at one point after another of what is done to a model, and looks at what is
left: the state before, or the state after, and nothing between.

`python -m attack.faults [--minutes N] [--only TEXT]` with PYTHONPATH=tests. Points are lines of
this package (Ctrl-C, as a signal, and exceptions), torch operations, and operations on files.
"""

from __future__ import annotations

import argparse
import ast
import errno
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import easyedit_mend_parallel
from attack.architectures import quiet
from attack.scenes import NEXT, SCENES, Scene, tensors_of
from easyedit_mend_parallel import rollback_all

ROUNDING = 1e-5
"""Between weights of about 1 that were solved in two ways."""
PACKAGE = str(Path(easyedit_mend_parallel.__file__).parent)
FILE_EVENTS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "tempfile.mkstemp",
    "tempfile.mkdtemp",
    "os.scandir",
    "os.listdir",
}
"""What Python does with files and tells its audit hooks of. Removing is not among them: what cannot
be removed stays."""


def _raise(error: type[BaseException]) -> None:
    if error is OSError:
        raise OSError(errno.ENOSPC, "No space left on device, on purpose")
    raise error("on purpose")


def _ctrl_c(_error: type[BaseException]) -> None:
    signal.raise_signal(signal.SIGINT)


class Point:
    """Counts the points that are passed, and breaks off at the `number`-th (from 1)."""

    def __init__(self, number: int, how: Callable[[], None]) -> None:
        self.number, self.how, self.passed = number, how, 0
        self.where = ""

    def passing(self, where: str) -> None:
        self.passed += 1
        if self.passed == self.number:
            self.where = where
            self.how()


@contextmanager
def at_lines(point: Point, *, cleaning_up: bool) -> Iterator[None]:
    """Points are the lines of this package. Without `cleaning_up` those are left out that put
    something back (`finally`, `except`, the end of a `with`): only a signal comes there."""

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE):
            return None
        if event == "line" and (cleaning_up or frame.f_lineno not in _cleaning(name)):
            point.passing(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


@cache
def _cleaning(file: str) -> frozenset[int]:
    """The lines of a file that only put something back, or only hold interrupts."""
    if file.endswith("interrupts.py"):
        return frozenset(range(1, 1000))
    found: set[int] = set()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try):
            found.add(node.lineno)  # from there CPython 3.11 does not leave a `with` around it
            for part in (*node.handlers, *node.finalbody):
                found |= set(range(part.lineno, (part.end_lineno or part.lineno) + 1))
        elif isinstance(node, ast.With):
            found |= set(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, ast.FunctionDef) and node.name in ("__exit__", "forget"):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(found)


@contextmanager
def at_operations(point: Point) -> Iterator[None]:
    """Points are the operations of torch, before each."""

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore
            point.passing(str(func))
            return func(*args, **(kwargs or {}))

    with Counting():
        yield


_files: list[Point] = []


def _audit(event: str, arguments: Any) -> None:
    if _files and event in FILE_EVENTS and tempfile.gettempdir() in str(arguments[:2]):
        _files[-1].passing(event)


@cache
def _audited() -> None:
    sys.addaudithook(_audit)


@contextmanager
def at_files(point: Point) -> Iterator[None]:
    """Points are the operations on files in the scene's folder."""
    _audited()
    _files.append(point)
    try:
        yield
    finally:
        _files.clear()


KINDS: dict[str, tuple[Any, Any, type[BaseException]]] = {
    "Ctrl-C at a line": (lambda p: at_lines(p, cleaning_up=True), _ctrl_c, KeyboardInterrupt),
    "MemoryError at a line": (lambda p: at_lines(p, cleaning_up=False), _raise, MemoryError),
    "RuntimeError at a line": (lambda p: at_lines(p, cleaning_up=False), _raise, RuntimeError),
    "RuntimeError at an operation": (at_operations, _raise, RuntimeError),
    "OutOfMemoryError at an operation": (at_operations, _raise, torch.OutOfMemoryError),
    "KeyboardInterrupt at an operation": (at_operations, _raise, KeyboardInterrupt),
    "OSError at a file": (at_files, _raise, OSError),
    "MemoryError at a file": (at_files, _raise, MemoryError),
}


class Tried:
    """One scene and one kind of fault: the states before and after, and how many points it has."""

    def __init__(self, name: str, kind: str, root: Path) -> None:
        self.name, self.kind, self.root = name, kind, root
        self.points_at, self.how, self.error = KINDS[kind]
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        plain = self._made()
        self.before = plain.seen()
        around = plain.around()
        point = Point(0, lambda: None)
        with self.points_at(point):
            plain.act()
        self.points = point.passed
        self.after = plain.seen()
        later = plain.around()
        self.steady = [key for key in around if around[key] == later[key]]
        self.next = {"nothing": self._then(done=False), "whole": self._then(done=True)}

    def _made(self) -> Scene:
        if self.root.exists():
            shutil.rmtree(self.root)
        (self.root / "scene").mkdir(parents=True)
        return SCENES[self.name](self.root / "scene")

    def _then(self, *, done: bool) -> list[dict[str, Any]]:
        made = self._made()
        if done:
            made.act()
        return self._later(made)

    @staticmethod
    def _later(made: Scene) -> list[dict[str, Any]]:
        """What a further edit gives, and what is left when all edits are taken out."""
        found = []
        if made.editor is not None and made.journal is None:
            one = made.editor.edit(NEXT)
            found.append(made.seen())
            if made.editor.solves_sequences:  # solved again from the start, it is rounded otherwise
                del found[-1]["logits"]
                found[-1]["weights"] = {n: t.detach().clone() for n, t in tensors_of(made.model)}
            del one
        rollback_all(made.model)
        found.append({key: made.seen()[key] for key in ("weights", "hooks", "flags")})
        return found

    def at(self, number: int) -> None:
        """Break off at this point, and note what is left."""
        made = self._made()
        around = made.around()
        point = Point(number, lambda: self.how(self.error))
        raised = ""
        try:
            with self.points_at(point):
                made.act()
        except BaseException as error:
            raised = type(error).__name__
        place = f"{self.name}, {self.kind}, point {number} of {self.points} ({point.where})"
        try:
            now = made.seen()
            if now == self.before:
                outcome = "nothing"
            elif now == self.after:
                outcome = "whole"
            elif not raised and self.error is RuntimeError and made.editor is not None:
                # what was tried first broke off, and another way gave other roundings
                outcome = "another way"
            else:
                return self._bad(f"{place}: {_differing(now, self.before, self.after)}")
            if outcome == "whole" and raised and not made.undoes:
                return self._bad(f"{place}: done, and nobody holds it")
            later = made.around()
            left = [key for key in self.steady if later[key] != around[key]]
            if left:
                return self._bad(f"{place}: other {', '.join(left)}")
            got = self._later(made)
            if outcome == "another way":
                good = got[-1] == self.next["whole"][-1]
            else:
                good = all(map(_alike, got, self.next[outcome]))
            if not good:
                return self._bad(f"{place}: {outcome}, and the next edit or rollback_all differs")
        except Exception as error:
            return self._bad(f"{place}: later {type(error).__name__}: {error}")
        self.outcomes[f"{outcome}, {raised or 'nothing'} raised"] += 1

    def _bad(self, what: str) -> None:
        self.outcomes["wrong"] += 1
        self.wrong.append(what)


def _alike(got: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Equal, with weights that are tensors equal but for rounding."""
    mine, other = got["weights"], wanted["weights"]
    if not any(map(torch.is_tensor, mine.values())):
        return got == wanted
    near = all(torch.allclose(mine[n], t, rtol=0, atol=ROUNDING) for n, t in other.items())
    return near and {**got, "weights": 0} == {**wanted, "weights": 0}


def _differing(now: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    parts = {key: "before" for key in now if now[key] == before[key]}
    parts |= {key: "after" for key in now if now[key] == after[key] != before[key]}
    other = [key for key in now if key not in parts]
    return f"neither before nor after: {parts}, other: {other}"


def chosen(points: int, most: int) -> list[int]:
    """At most about `most` numbers of 1 to `points`, evenly spread."""
    return list(range(1, points + 1, max(1, -(-points // most))))


@contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """A folder in which temporary files are made while the context lasts, and nothing else."""
    folder, former = Path(tempfile.mkdtemp()), tempfile.tempdir
    (folder / "temporary").mkdir()
    tempfile.tempdir = str(folder / "temporary")
    try:
        yield folder
    finally:
        tempfile.tempdir = former
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="")
    parser.add_argument("--most", type=int, default=10**6, help="points of each scene and kind")
    asked = parser.parse_args()
    quiet()
    until = time.monotonic() + 60 * asked.minutes
    totals: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    pairs = [(name, kind) for name in SCENES for kind in KINDS if asked.only in f"{name}, {kind}"]
    with own_temporary_folder() as folder:
        tried = {}
        for number, (name, kind) in enumerate(pairs):
            share = (until - time.monotonic()) / (len(pairs) - number)
            began = time.monotonic()
            one = tried[name, kind] = Tried(name, kind, folder / "temporary" / "root")
            cost = 0.05
            numbers = chosen(one.points, asked.most)
            if numbers:
                one.at(numbers[0])
                cost = max(0.001, time.monotonic() - began) / 4
                numbers = chosen(one.points, min(asked.most, max(1, int(share / cost))))
            for point in numbers[1:]:
                if time.monotonic() - began > 2 * max(share, 5):
                    break
                one.at(point)
            totals.setdefault(kind, Counter()).update(one.outcomes)
            wrong += one.wrong
            print(f"{name}, {kind}: {one.points} points, {dict(one.outcomes)}", flush=True)
            for what in one.wrong[:5]:
                print(f"    {what}", flush=True)
    print()
    for kind, outcomes in totals.items():
        print(f"{kind}: {sum(outcomes.values())} points, {dict(outcomes)}")
    print(f"all: {sum(sum(one.values()) for one in totals.values())} points, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
