"""Limits the memory of one child process, including the page cache, and measures it.

Linux only: with a memory control group (version 1 or 2) or systemd-run. If neither is allowed, the
process runs without a limit, and a message says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUP = "easyedit-mend-parallel-{}"


def anonymous_mib() -> float:
    """This process's anonymous memory in MiB: what the kernel cannot read again from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak:
    """The peak anonymous memory of this process since the last `reset`, sampled."""

    def __init__(self) -> None:
        self._largest = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self._largest = anonymous_mib()

    @property
    def mib(self) -> float:
        return max(self._largest, anonymous_mib())

    def _watch(self) -> None:
        while True:
            self._largest = max(self._largest, anonymous_mib())
            time.sleep(0.01)


@dataclass(frozen=True)
class Cap:
    """The limit of one process: a description, a prefix of its command, and how it joins."""

    says: str
    prefix: tuple[str, ...] = ()
    join: Callable[[], None] | None = None


@contextmanager
def capped(limit: int) -> Iterator[Cap]:
    """A way to run one process with at most `limit` bytes, including the page cache."""
    for make in (_version_1, _version_2):
        with suppress(OSError):
            group = make(limit)
            try:
                yield Cap("a memory control group", join=_joining(group))
            finally:
                with suppress(OSError):
                    group.rmdir()
            return
    if shutil.which("systemd-run"):
        prefix = ("systemd-run", "--user", "--scope", "--quiet")
        limits = ("-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0")
        if subprocess.run([*prefix, *limits, "true"], capture_output=True).returncode == 0:
            yield Cap("systemd-run", prefix=(*prefix, *limits))
            return
    yield Cap("nothing: no limit may be set on this machine, so only anonymous memory is reported")


def _version_1(limit: int) -> Path:
    group = ROOT / "memory" / GROUP.format(os.getpid())
    if not (ROOT / "memory" / "memory.limit_in_bytes").is_file():
        raise OSError
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))
    return group


def _version_2(limit: int) -> Path:
    if "memory" not in (ROOT / "cgroup.controllers").read_text():
        raise OSError
    (ROOT / "cgroup.subtree_control").write_text("+memory")
    group = ROOT / GROUP.format(os.getpid())
    group.mkdir()
    (group / "memory.max").write_text(str(limit))
    with suppress(OSError):
        (group / "memory.swap.max").write_text("0")
    return group


def _joining(group: Path) -> Callable[[], None]:
    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return join
