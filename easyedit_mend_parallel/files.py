"""Writes files whole or not at all, and reads and writes safetensors files with a JSON header.

Knows nothing of the files' content.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from easyedit_mend_parallel.errors import EditError, MendParallelError

HEADER = "easyedit_mend_parallel"
"""The safetensors metadata entry that holds this package's JSON header."""


def cache_folder() -> Path:
    """`$EASYEDIT_MEND_PARALLEL_CACHE`, else a folder of this package in the user's cache."""
    named = os.environ.get("EASYEDIT_MEND_PARALLEL_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "easyedit-mend-parallel"


class Readable(Protocol):
    """A file that can be read as text: a `Path`, or a resource that ships with a package."""

    def read_text(self, encoding: str) -> str: ...


def text_lines(file: Readable, field: str, error: type[MendParallelError]) -> tuple[str, ...]:
    """The lines of a UTF-8 text file without surrounding white space; empty lines are left out.

    Raises `error` if the file cannot be read or holds no text. The message names the file, and
    `field`, the option that named it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{field}: cannot read text from {file}: {problem}") from problem
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise error(f"{field}: there is no line of text in {file}")
    return lines


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`. It replaces `path` if the context ends without an exception.

    A reader sees the old file or the new one, never a part; after an exception, the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def is_free(path: Path) -> bool:
    """Whether `path` does not exist or is an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path`. It becomes `path` if the context ends without exception.

    Raises EditError if `path` exists and is not an empty folder. After an exception nothing is
    left.
    """
    if not is_free(path):
        raise EditError(f"{path} is there already and not empty: name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        mask = _umask()
        os.chmod(temporary, 0o777 & ~mask)
        for file in temporary.rglob("*"):
            os.chmod(file, (0o777 if file.is_dir() else 0o666) & ~mask)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's file mode mask. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a safetensors file of `tensors`, with `header` as JSON in its metadata."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        save_file(here, temporary, metadata={HEADER: json.dumps(header)})


def read_tensors(path: Path, *, matrices: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, memory-mapped, and its JSON header (empty if none).

    With `matrices=False`, tensors of two and more dimensions are on the meta device, without
    values.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
        names = file.keys()
        if matrices:
            return {name: file.get_tensor(name) for name in names}, header
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        return {
            name: torch.empty(shape, device="meta") if len(shape) > 1 else file.get_tensor(name)
            for name, shape in shapes.items()
        }, header
