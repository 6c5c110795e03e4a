"""The hidden-state cache: hidden states of texts, in memory up to a limit, then in one file.

Knows token ids and rows of numbers, but not how they are computed. In a named folder the file stays
for later runs; `identity` says what the states were computed from, and a cache with another
identity is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import TrunkError
from easyedit_mend_parallel.files import written_whole

log = logging.getLogger(__name__)

STATES, INDEX = "states.bin", "index.json"
"""The two files of a folder: rows of numbers, and the position of each text's rows."""


@dataclass(frozen=True)
class _Extent:
    """`length` rows, starting at byte `offset` of the file."""

    offset: int
    length: int


class HiddenStateCache:
    """{token ids: hidden states (T, width)}, on the CPU, in their own dtype.

    `memory_limit` and `disk_limit` are in bytes; states that fit into neither are not cached.
    Without a `folder` the file is temporary and is removed with this object.

    Raises TrunkError for a folder with another identity, or a damaged one.
    """

    def __init__(
        self,
        identity: str,
        *,
        memory_limit: int,
        disk_limit: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.identity = identity
        self._memory_left, self._disk_left = memory_limit, disk_limit
        self._in_memory: dict[bytes, Tensor] = {}
        self._on_disk: dict[bytes, _Extent] = {}
        self._layout: tuple[torch.dtype, int] | None = None
        self._end = 0
        self._mapped: mmap.mmap | None = None
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="easyedit_mend_parallel_states_"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = folder
            self._reopen()

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._on_disk)

    @property
    def bytes_on_disk(self) -> int:
        return self._end

    def get(self, ids: Sequence[int]) -> Tensor | None:
        """The states (T, width) of a text; None if not cached. Do not write to them."""
        key = _key(ids)
        if key in self._in_memory:
            return self._in_memory[key]
        extent = self._on_disk.get(key)
        return None if extent is None else self._read(extent)

    def put(self, ids: Sequence[int], states: Tensor, *, beginning: int = 0) -> None:
        """Cache the states (T, width) of a text, if there is room.

        With `beginning`, the first `beginning` tokens are also cached as a text, at no cost.
        """
        key = _key(ids)
        if key in self._in_memory or key in self._on_disk:
            return
        shorter = _key(ids[:beginning])
        if states.nbytes <= self._memory_left:
            self._memory_left -= states.nbytes
            own = states.detach().to("cpu", copy=True).contiguous()
            self._in_memory[key] = own
            if beginning:
                self._in_memory.setdefault(shorter, own[:beginning])
        elif states.nbytes <= self._disk_left:
            extent = self._append(states.detach().cpu().contiguous())
            if extent is not None:
                self._on_disk[key] = extent
                if beginning:
                    self._on_disk.setdefault(shorter, _Extent(extent.offset, beginning))

    def save(self) -> None:
        """Write the index, so that later runs find the states on disk."""
        if self._layout is None:
            return
        dtype, width = self._layout
        index = {
            "identity": self.identity,
            "dtype": str(dtype).removeprefix("torch."),
            "width": width,
            "extents": {k.hex(): [p.offset, p.length] for k, p in self._on_disk.items()},
        }
        with written_whole(self._folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index), encoding="utf-8")

    def _append(self, states: Tensor) -> _Extent | None:
        """Append rows to the file. If the disk is full: None, and nothing more is written."""
        layout = (states.dtype, states.shape[1])
        if self._layout is None:
            self._layout = layout
        elif layout != self._layout:
            raise TrunkError(
                f"hidden states are {layout[1]} wide and {layout[0]}; those cached in "
                f"{self._folder} are {self._layout[1]} wide and {self._layout[0]}: name another "
                "folder, or delete it"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / STATES, "r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.write(states.view(torch.uint8).numpy().data)
        except OSError as error:
            log.warning("no more hidden states are cached in %s: %s", self._folder, error)
            self._disk_left = 0
            return None
        extent = _Extent(self._end, len(states))
        self._end += states.nbytes
        self._disk_left -= states.nbytes
        return extent

    def _read(self, extent: _Extent) -> Tensor:
        assert self._layout is not None
        dtype, width = self._layout
        size = extent.length * width * dtype.itemsize
        if self._mapped is None or len(self._mapped) < extent.offset + size:
            with open(self._folder / STATES, "rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        numbers = torch.frombuffer(
            self._mapped, dtype=torch.uint8, count=size, offset=extent.offset
        )
        return numbers.view(dtype).reshape(extent.length, width)

    def _reopen(self) -> None:
        path = self._folder / INDEX
        if not path.exists():
            return
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            identity, width = str(index["identity"]), int(index["width"])
            dtype = getattr(torch, index["dtype"])
            extents = {bytes.fromhex(k): _Extent(*extent) for k, extent in index["extents"].items()}
            row = width * dtype.itemsize
            end = max((p.offset + p.length * row for p in extents.values()), default=0)
            whole = end == 0 or (self._folder / STATES).stat().st_size >= end
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrunkError(
                f"the hidden states cached in {self._folder} cannot be read ({error}): delete that "
                "folder, and they are computed again"
            ) from error
        if identity != self.identity:
            raise TrunkError(
                f"the hidden states cached in {self._folder} were computed with other weights or "
                "another tokenizer than this model's. Delete that folder, or name another one"
            )
        if not whole:
            raise TrunkError(
                f"{self._folder / STATES} is shorter than its index says: delete that folder, and "
                "the hidden states are computed again"
            )
        self._layout, self._on_disk, self._end = (dtype, width), extents, end
        self._disk_left -= end


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(array("q", ids).tobytes()).digest()[:16]
