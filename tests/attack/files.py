"""Damages a file of every kind that this package reads, and says what became of it.

    PYTHONPATH=.:tests python -m attack.files [--flips 2000] [--only edit]

A file is cut, gets a flipped bit, or another value, tensor, key or none at one place of its content
(with the checksums that belong to it). Reading and using it has to raise an exception of this
package or to work, soon, without much memory, and to leave the model as it was.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from toys import same_bits

from attack.architectures import quiet
from attack.file_kinds import KINDS, Kind
from easyedit_mend_parallel import MendParallelError

SECONDS, WAIT = 1.0, 20
"""CPU time that reading a damaged file may take, and seconds after which a reader hangs."""
MIB = 200
"""Memory that the damaged files of a kind may take beside their size."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    float("nan"),
    1e308,
    "",
    "../x",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
)


@dataclass
class Damaged:
    """A file of one kind, what it holds, and what became of it after each damage."""

    kind: Kind
    path: Path
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: set[type[MendParallelError]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.kind.make(self.path)
        self.whole = self.path.read_bytes()
        self.before = self.kind.read(self.path)
        self.memory = _peak()

    def cut(self, percents: Sequence[int]) -> None:
        for percent in percents:
            self.path.write_bytes(self.whole[: len(self.whole) * percent // 100])
            self._read(f"cut at {percent} %")

    def flip(self, times: int, seed: int = 0) -> None:
        """Flip a random bit, half of the times in the file's head."""
        generator = random.Random(seed)
        head = min(len(self.whole), 8 + int.from_bytes(self.whole[:8], "little"))
        for number in range(times):
            place = generator.randrange(head if number % 2 else len(self.whole))
            changed = bytearray(self.whole)
            changed[place] ^= 1 << generator.randrange(8)
            self.path.write_bytes(changed)
            self._read(f"a bit of byte {place}")

    def change(self, most: int | None = None) -> None:
        """Change what the file holds, at one place after another, and use it."""
        tree = self._tree()
        every = list(changes(tree))
        step = 1 if most is None else max(1, len(every) // most)
        for where, change in every[::step]:
            changed = copy.deepcopy(tree)
            changed = change(changed)
            self.path.write_bytes(self.whole)
            try:
                self.kind.write(self.path, changed)
            except Exception:
                continue  # such a file cannot be written
            self._try(where, lambda: self.kind.use(self.path), lambda _got: "used", 5 * SECONDS)

    def end(self) -> None:
        """Put the file back, and look at the memory that all of this took."""
        self.path.write_bytes(self.whole)
        grown = (_peak() - self.memory) / 2**20 - len(self.whole) / 2**20
        if grown > MIB:
            self.wrong.append(f"{grown:.0f} MiB more than the file's size")

    def _tree(self) -> Any:
        self.path.write_bytes(self.whole)
        tree = self.kind.parsed(self.path)
        self.kind.write(self.path, copy.deepcopy(tree))
        self.kind.use(self.path)  # the way through the tree is right
        return tree

    def _read(self, where: str) -> None:
        self._try(where, lambda: self.kind.read(self.path), self._compared, SECONDS)

    def _compared(self, got: Any) -> str:
        plain, tensors = got
        was_plain, was = self.before
        same = repr(plain) == repr(was_plain) and tensors.keys() == was.keys()
        if same and all(same_bits(tensors[name], one) for name, one in was.items()):
            return "as before"
        return "other content" if not self.kind.checked else "WRONG: other content"

    def _try(self, where: str, act: Callable[[], Any], say: Callable[[Any], str], s: float) -> None:
        began = time.process_time()
        try:
            with soon():
                outcome = say(act())
        except MendParallelError as error:
            outcome = "refused"
            self.errors.add(type(error))
        except Exception as error:
            outcome = f"WRONG: {type(error).__name__}: {error}"
        spent = time.process_time() - began
        if spent > s:
            outcome = f"WRONG: {spent:.1f} s, {outcome}"
        if outcome.startswith("WRONG"):
            self.wrong.append(f"{where}: {outcome}"[:300])
            outcome = "wrong"
        self.outcomes[outcome] += 1


def changes(tree: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(where and what, a function that changes a copy of the tree and gives it), everywhere."""
    for place, value in places(tree):
        for name, other in others(value):
            yield f"{'/'.join(map(str, place))} = {name}", _setting(place, other)
        if place:
            yield f"{'/'.join(map(str, place))} missing", _without(place)
        if isinstance(value, dict):
            yield f"{'/'.join(map(str, place))} + surplus", _setting((*place, "surplus"), 1)


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place in a tree with what is there; of what is alike the first and the last."""
    yield place, tree
    if isinstance(tree, (dict, list, tuple)):
        items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
        alike: dict[str, list[Any]] = {}
        for key, value in items:
            alike.setdefault(_form(key, value), []).append(key)
        for keys in alike.values():
            for key in dict.fromkeys((keys[0], keys[-1])):
                yield from places(tree[key], (*place, key))


def _form(key: Any, value: Any) -> str:
    """Equal for what a reader treats alike: items of a list, or parts of several weights."""
    if isinstance(key, int):
        return type(value).__name__
    if isinstance(value, dict) and "." in key:
        return " ".join(value)
    return str(key).rpartition(".")[2] if "." in str(key) else str(key)


def others(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, another value) in place of `value`."""
    if not torch.is_tensor(value):
        for other in VALUES:
            if repr(other) != repr(value):
                yield repr(other), other
        return
    yield "one dimension more", value.unsqueeze(0)
    yield "one row less", value[:-1] if value.dim() else value[None][:0]
    yield "empty", value[:0] if value.dim() else value[None][:0]
    yield "half", value.half()
    yield "whole numbers", value.long()
    yield "truth values", value.bool()
    if value.dtype is not torch.bool:
        kind = torch.finfo if value.is_floating_point() else torch.iinfo
        yield "large", torch.full_like(value, kind(value.dtype).max)
        yield "small", torch.full_like(value, kind(value.dtype).min)
    if value.is_floating_point():
        yield "NaN", torch.full_like(value, float("nan"))
        yield "infinite", torch.full_like(value, float("inf"))


def _setting(place: tuple[Any, ...], value: Any) -> Callable[[Any], Any]:
    def set_to(tree: Any) -> Any:
        if not place:
            return value
        _at(tree, place[:-1])[place[-1]] = value
        return tree

    return set_to


def _without(place: tuple[Any, ...]) -> Callable[[Any], Any]:
    def drop(tree: Any) -> Any:
        del _at(tree, place[:-1])[place[-1]]
        return tree

    return drop


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


@contextmanager
def soon() -> Iterator[None]:
    """Raise TimeoutError where the context takes longer than `WAIT` seconds."""

    def late(*_: Any) -> None:
        raise TimeoutError("the file was read for too long")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(WAIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def _peak() -> int:
    """Most bytes that this process had in memory at once."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    quiet()
    logging.disable(logging.CRITICAL)
    wrong = 0
    for name, kind in KINDS.items():
        if asked.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            one = Damaged(kind, Path(folder))
            one.cut(range(100))
            one.flip(asked.flips)
            one.change()
            one.end()
        print(f"{name}: {dict(one.outcomes)}", flush=True)
        for what in one.wrong:
            print(f"    {what}", flush=True)
        wrong += len(one.wrong)
    print(f"{wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
