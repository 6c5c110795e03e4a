"""Private files of this process, for edited weights and rows that do not stay in memory.

Each file is written whole or not at all. It is removed with the last reference to it, at the latest
when the process exits. Knows nothing of models.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.files import write_tensors

WEIGHT = "weight"
"""The name of the tensor in the file of a weight."""


class ScratchFolder:
    """A folder that only this user can read, in the system's folder for temporary files (TMPDIR).

    Copying it returns the same object: a copied model shares the files, and none is removed early.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="easyedit_mend_parallel_"))
        self._count = 0
        weakref.finalize(self, _remove, self.path, os.getpid())

    def next_path(self) -> Path:
        self._count += 1
        return self.path / f"{self._count}.safetensors"

    def __deepcopy__(self, _memo: object) -> ScratchFolder:
        return self


class ScratchFile:
    """A safetensors file; removed when the last reference to it is gone."""

    def __init__(self, folder: ScratchFolder, tensors: Mapping[str, Tensor]) -> None:
        self.folder = folder  # so the folder outlives its files
        self.path = folder.next_path()
        weakref.finalize(self, _remove, self.path, os.getpid())
        write_tensors(self.path, tensors, {}, checked=False)

    def __deepcopy__(self, _memo: object) -> ScratchFile:
        return self


def write_scratch(folder: ScratchFolder | None, tensor: Tensor, name: str) -> ScratchFile:
    """Write `tensor`, the weight `name`, to a file in `folder` or in a new folder.

    Raises UpdateError if the disk is full or cannot be written.
    """
    instead = "raise overlay_limit so that the weight stays in memory"
    return write_scratch_tensors(folder, {WEIGHT: tensor}, f"{name}: the edited weight", instead)


def write_scratch_tensors(
    folder: ScratchFolder | None, tensors: Mapping[str, Tensor], what: str, instead: str
) -> ScratchFile:
    """Write `tensors` to a file in `folder` or in a new folder; `what` they are, and what to do
    `instead`, is said where that fails.

    Raises UpdateError if the disk is full or cannot be written.
    """
    where = tempfile.gettempdir() if folder is None else str(folder.path)
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        free = shutil.disk_usage(where).free
        if free < size:
            raise OSError(f"it takes {size:,} bytes and {free:,} are free")
        return ScratchFile(folder or ScratchFolder(), tensors)
    except (OSError, SafetensorError) as error:
        raise UpdateError(
            f"{what} cannot be written to {where} ({error}); nothing was changed. Name another "
            f"folder in the environment variable TMPDIR, or {instead}"
        ) from error


def _remove(path: Path, made_by: int) -> None:
    """Remove a file or folder; do nothing in a fork of the process that made it."""
    if os.getpid() != made_by:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
