"""Uses one toy model for long, and says whether anything grows that should not.

    PYTHONPATH=.:tests python -m attack.load [--edits 10000] [--opens 1000] [--minutes 60]

Edits that are undone at once, edits in a row, opens of a journal, then a mixed run in which what
comes next is drawn at random. Watched: the time of an edit, the process's memory, hooks, open
files, temporary files; and at the end whether the weights are those of the base, to the bit.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scoped_toys
import torch
from edited import editor_of
from toys import OBSERVED, REQUESTS, same_bits, toy_model, weights

from attack.architectures import quiet
from attack.faults import own_temporary_folder
from easyedit_mend_parallel import Journal, load_edit, load_scoped, rollback_all, save_scoped

ASKED = [*REQUESTS, *OBSERVED]
MARKS = 20
"""Every phase is looked at so many times."""
MIB = 20.0
"""By how much memory may grow in a phase: the allocators of torch and of Python fill up once."""
SLOWER = 1.5
"""The last stretch of a phase may take so many times as long as its first."""


class Watched:
    """One phase: times, memory and what is held at marks."""

    def __init__(self, name: str, model: Any, times: int) -> None:
        self.name, self.model = name, model
        self.every = max(1, times // MARKS)
        self.seconds: list[float] = []
        self.memory: list[float] = []
        self.held: list[dict[str, int]] = []
        self.wrong: list[str] = []

    def step(self, act: Callable[[], Any]) -> None:
        started = time.perf_counter()
        act()
        self.seconds.append(time.perf_counter() - started)
        if len(self.seconds) % self.every == 0:
            gc.collect()
            self.memory.append(resident())
            self.held.append(held_by(self.model))

    def report(self, *, paced: bool = True) -> list[str]:
        """Print the phase. Returns what is wrong; unless it is `paced`, its steps are not alike and
        may take any time."""
        half = max(1, len(self.seconds) // 4)
        stretches = (self.seconds[:half], self.seconds[-half:])
        first, last = map(statistics.median, stretches)
        memory = self.memory[2:] or self.memory
        grown = memory[-1] - memory[0] if memory else 0.0
        print(
            f"{self.name}: {len(self.seconds)} times, {1000 * first:.1f} ms at first, "
            f"{1000 * last:.1f} ms at last, {grown:+.1f} MiB, {self.held[-1] if self.held else ''}",
            flush=True,
        )
        if grown > MIB:
            self.wrong.append(f"{self.name}: memory grew by {grown:.1f} MiB")
        if last > SLOWER * first and paced:
            self.wrong.append(f"{self.name}: {last / first:.2f} times as slow at last")
        if self.held and self.held[-1] != self.held[0]:
            self.wrong.append(f"{self.name}: held {self.held[0]}, then {self.held[-1]}")
        return self.wrong


def resident() -> float:
    """MiB that this process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def held_by(model: Any) -> dict[str, int]:
    """What a leak would make more of."""
    modules = list(model.modules())
    return {
        "hooks": sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules),
        "files": len(os.listdir("/proc/self/fd")),
        "temporary": len(os.listdir(tempfile.gettempdir())),
    }


def edited_and_undone(edits: int) -> list[str]:
    model = toy_model("llama")
    editor, seen = editor_of(model), Watched("edit and undo", model, edits)
    for number in range(edits):
        seen.step(lambda n=number: editor.edit(ASKED[n % len(ASKED)]).rollback())
    return seen.report()


def in_a_row(edits: int) -> list[str]:
    """Edits that are added up, and whose results nobody holds."""
    model = toy_model("llama")
    editor, seen = editor_of(model, edit_lr=1e-5), Watched("edits in a row", model, edits)
    for number in range(edits):
        seen.step(lambda n=number: editor.edit(ASKED[n % len(ASKED)]))
    return seen.report() + _base_again("edits in a row", model)


def opened(folder: Path, opens: int) -> list[str]:
    """A journal of eight edits that is opened with a fresh base again and again."""
    model = toy_model("llama")
    editor, journal = editor_of(model), Journal(folder / "journal").apply_to(model)
    for request in ASKED[:8]:
        journal.add(editor.edit(request))
    fresh = toy_model("llama")
    seen = Watched("a journal's opens", fresh, opens)

    def open_and_close() -> None:
        Journal(folder / "journal").apply_to(fresh)
        rollback_all(fresh)

    for _ in range(opens):
        seen.step(open_and_close)
    return seen.report() + _base_again("a journal's opens", fresh)


def mixed(folder: Path, minutes: float, seed: int = 0) -> list[str]:
    """Whatever a service does with a model, in random order."""
    draw, until = random.Random(seed), time.monotonic() + 60 * minutes
    model, scoped = toy_model("llama"), toy_model("llama")
    editors = [
        editor_of(model),
        editor_of(model, aggregate="least_squares", sequence="solve", edit_lr=1e-5),
    ]
    scopes = scoped_toys.editor_of(scoped)
    held: list[Any] = []
    done: Counter[str] = Counter()

    def edit() -> None:
        held.append(draw.choice(editors).edit(draw.choice(ASKED)))
        if len(held) > 6:
            held.pop(draw.randrange(len(held))).rollback()

    def batch() -> None:
        editors[0].edit(draw.sample(ASKED, 3)).rollback()

    def save_and_load() -> None:
        path = editors[0].edit(draw.choice(ASKED)).save(folder / "edit")
        rollback_all(model)
        held.clear()
        load_edit(path).apply(model).rollback()

    def scope() -> None:
        scopes.edit(draw.choice(scoped_toys.THREE))
        shutil.rmtree(folder / "scoped", ignore_errors=True)
        save_scoped(scoped, folder / "scoped")
        fresh = toy_model("llama")
        load_scoped(folder / "scoped", fresh, scopes.tokenizer)
        if draw.random() < 0.3:
            rollback_all(scoped)

    def ask() -> None:
        for one in (model, scoped):
            one.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=4, pad_token_id=3)

    seen = Watched("mixed", model, 2000)
    while time.monotonic() < until:
        [act] = draw.choices([edit, batch, save_and_load, scope, ask], [6, 2, 1, 1, 1])
        done[act.__name__] += 1
        seen.step(act)
    rollback_all(scoped)
    held.clear()
    print(f"    {dict(done)}")
    # hooks come and go with scoped edits, on another model; on this one none may stay
    return seen.report(paced=False) + _base_again("mixed", model) + _base_again("scoped", scoped)


def _base_again(name: str, model: Any) -> list[str]:
    rollback_all(model)
    base, now = toy_model("llama"), weights(model)
    other = [one for one, bits in weights(base).items() if not same_bits(now[one], bits)]
    return [f"{name}: {other} are not the base's"] if other else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--opens", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    asked = parser.parse_args()
    quiet()
    with own_temporary_folder() as folder:
        wrong = edited_and_undone(asked.edits)
        wrong += in_a_row(asked.edits)
        wrong += opened(folder, asked.opens)
        wrong += mixed(folder, asked.minutes)
    print("\n".join(wrong) or "nothing grew, and every weight is the base's")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
