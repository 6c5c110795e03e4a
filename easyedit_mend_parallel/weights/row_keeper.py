"""Keeps rows of updates in memory up to a limit, and moves the oldest ones to files above it.

Knows rows and files, and neither requests nor the use of the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.rows_file import RowsPlace, rows_at, stacked
from easyedit_mend_parallel.weights.scratch_files import (
    ScratchFile,
    ScratchFolder,
    write_scratch_tensors,
)
from easyedit_mend_parallel.weights.slabs import SLAB, InSlab, Slabs
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

BATCH = 16
"""Minimum fraction of the limit that is moved into one file, so that there are few files."""
SPARSE = 2
"""A file is rewritten without its removed rows when these are 1 - 1/SPARSE of it."""
RECENT = 128
"""Number of updates, the last ones read from files, that stay in memory."""


@dataclass(eq=False)
class _File:
    """A file of rows, and the rows in it that were not removed."""

    file: ScratchFile
    nbytes: int
    live: dict[KeptRows, None]
    live_bytes: int


class KeptRows:
    """The rows of one request for one target, in memory or in a file. A `RowKeeper` reads them."""

    __slots__ = ("__weakref__", "_in_slab", "_rows", "_slabs", "lies", "nbytes")

    def __init__(self, rows: LowRankUpdate) -> None:
        self.nbytes = rows.keys.nbytes + rows.values.nbytes
        self.lies: tuple[_File, RowsPlace] | None = None
        self._rows: LowRankUpdate | None = rows
        self._in_slab: tuple[InSlab, InSlab] | None = None
        self._slabs: Slabs | None = None

    def in_memory(self) -> LowRankUpdate | None:
        """The rows, or None if they are in a file."""
        if self._in_slab is None:
            return self._rows
        keys, values = (part.tensor() for part in self._in_slab)
        return LowRankUpdate(keys, values, torch.zeros(len(keys), dtype=torch.long))

    def settle(self, slabs: Slabs) -> None:
        """Copy the rows into a slab of `slabs`, if they are on the CPU and in none of those yet."""
        rows = self.in_memory()
        if rows is not None and rows.keys.device.type == "cpu" and self._slabs is not slabs:
            self._in_slab, self._slabs, self._rows = slabs.take(rows), slabs, None

    def move(self, file: _File, place: RowsPlace) -> None:
        """Say that the rows lie in a file from now on."""
        self.lies = (file, place)
        self._rows = self._in_slab = self._slabs = None


class RowKeeper:
    """The rows of one model. `limit` is their maximum size in memory in bytes; None: no limit.

    Files are private and temporary: they are removed with the last copy of the model, at the latest
    when the process exits. A deep copy shares the files that were written before.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.bytes = 0
        """Size of the rows in memory, without those that were read from files."""
        self._in_memory: dict[KeptRows, None] = {}
        self._files: dict[_File, None] = {}
        self._folder: ScratchFolder | None = None
        self._recent: dict[KeptRows, LowRankUpdate] = {}
        self._slabs = Slabs()
        self._removed = 0
        """Size of what was removed from the present slabs."""

    @property
    def bytes_in_files(self) -> int:
        return sum(file.nbytes for file in self._files)

    def add(self, kept: KeptRows) -> None:
        """Add `kept`, which may have been removed before."""
        if kept.lies is None:
            kept.settle(self._slabs)
            self._in_memory[kept] = None
            self.bytes += kept.nbytes
            return
        file, _ = kept.lies
        file.live[kept] = None
        file.live_bytes += kept.nbytes
        self._files[file] = None

    def remove(self, kept: KeptRows) -> None:
        """Remove `kept`. A file with few other rows left is rewritten without it, and the rows in
        memory are copied together once more was removed than is left."""
        self._recent.pop(kept, None)
        if kept.lies is None:
            del self._in_memory[kept]
            self.bytes -= kept.nbytes
            self._removed += kept.nbytes
            if self._removed > max(self.bytes, SLAB):
                self._slabs, self._removed = Slabs(), 0
                for one in self._in_memory:  # the old slabs go one by one, as they get empty
                    one.settle(self._slabs)
            return
        file, _ = kept.lies
        del file.live[kept]
        file.live_bytes -= kept.nbytes
        if not file.live:
            del self._files[file]
        elif file.live_bytes * SPARSE < file.nbytes:
            try:
                rows = rows_at(file.file.path, [one.lies[1] for one in file.live if one.lies])
                self._write(list(zip(file.live, rows, strict=True)))
            except UpdateError as error:  # the old file still has them
                log.warning("%s; the space of edits that were undone is not freed", error)

    def read(self, kept: KeptRows) -> LowRankUpdate:
        """The rows: on their device if they are in memory, on the CPU if they are read from a file.

        Raises UpdateError if their file is missing.
        """
        here = kept.in_memory()
        if here is not None:
            return here
        rows = self._recent.pop(kept, None)
        if rows is None:
            assert kept.lies is not None
            file, place = kept.lies
            rows = rows_at(file.file.path, [place])[0]
            while len(self._recent) >= RECENT:
                self._recent.pop(next(iter(self._recent)), None)
        self._recent[kept] = rows
        return rows

    def shrink(self, others: int) -> None:
        """If the rows and `others` bytes together exceed the limit, move the oldest rows to a file.

        Raises UpdateError if no file can be written. No row was moved then.
        """
        if self.limit is None or self.bytes + others <= self.limit:
            return
        wanted = self.bytes + others - self.limit + self.limit // BATCH
        chosen: list[tuple[KeptRows, LowRankUpdate]] = []
        for kept in self._in_memory:
            if wanted <= 0:
                break
            chosen.append((kept, self.read(kept)))
            wanted -= kept.nbytes
        if chosen:
            self._write(chosen)

    def _write(self, chosen: Sequence[tuple[KeptRows, LowRankUpdate]]) -> None:
        """Move rows from memory or from other files to a new file."""
        tensors, places = stacked([("rows", rows) for _, rows in chosen])
        self._folder = self._folder or ScratchFolder()
        written = write_scratch_tensors(
            self._folder,
            tensors,
            "rows of scoped edits",
            "raise scope_memory so that they stay in memory",
        )
        size = sum(kept.nbytes for kept, _ in chosen)
        new = _File(written, size, {kept: None for kept, _ in chosen}, size)
        self._files[new] = None
        for (kept, _), place in zip(chosen, places, strict=True):
            before = kept.lies
            kept.move(new, place)
            if before is None:
                del self._in_memory[kept]
                self.bytes -= kept.nbytes
            else:
                self._files.pop(before[0], None)
