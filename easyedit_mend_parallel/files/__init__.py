"""Writes files whole or not at all; reads text, and safetensors files with a JSON header.

Knows nothing of the files' content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from easyedit_mend_parallel.errors import EditError, FileError, MendParallelError
from easyedit_mend_parallel.files.interrupts import interrupts_held

HEADER = "easyedit_mend_parallel"
"""The safetensors metadata entry that holds this package's JSON header."""
CHECKSUM = "checksum"
"""The key of a checksum: in a JSON header that of the tensors, in the metadata that of the header.
Each shows where the other was lost, so no flipped bit turns a file into one without a checksum."""

READ_AT_ONCE = 1 << 20
"""Number of bytes of a file that are read at a time for its sha256."""


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


def parsed_json(text: str | bytes) -> Any:
    """What JSON text says. Raises ValueError or RecursionError where it cannot be parsed, or where
    a name has two different values, of which `json.loads` takes the last without a word."""
    return json.loads(text, object_pairs_hook=_named_once)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"{name} has two values; leave one of them out")
        found[name] = value
    return found


def is_there(path: Path, error: type[MendParallelError]) -> bool:
    """Whether there is a file at `path`. Raises `error` where this user may not look."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise error(f"{path.absolute()} cannot be read: {problem.strerror or problem}") from problem


def refuse_irregular(path: Path) -> None:
    """Raise OSError for a folder, a pipe or a device: reading those may never end."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`. It replaces `path` if the context ends without an exception.

    A reader sees the old file or the new one, never a part; after an exception, the old one. Raises
    FileError where it cannot be written, inside of the context too.
    """
    with _naming(path), interrupts_held() as held:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.close(handle)
            temporary = Path(name)
            with held.as_before():
                yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into a FileError.

    An error about a file in another folder, such as one that is read meanwhile, stays what it is.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        of, folder = getattr(error, "filename", None), path.absolute().parent
        if isinstance(of, (str, bytes)) and folder not in Path(os.fsdecode(of)).absolute().parents:
            raise
        reason = error.__cause__ if isinstance(error, FileError) else error
        raise FileError(
            f"{path} cannot be written ({reason}); what was there is unchanged. Make room, or name "
            "another place"
        ) from reason


def is_free(path: Path) -> bool:
    """Whether `path` does not exist or is an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path`. It becomes `path` if the context ends without exception.

    Raises EditError if `path` exists and is not an empty folder. After an exception nothing is
    left. Raises FileError where it cannot be written, inside of the context too.
    """
    if not is_free(path):
        raise EditError(f"{path} exists and is not empty: name a new folder")
    with _naming(path), interrupts_held() as held:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            with held.as_before():
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, checked: bool = True
) -> None:
    """Write a safetensors file of `tensors`, with `header` as JSON in its metadata.

    With `checked`, `read_tensors` finds every bit that changes in the file.
    """
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, CHECKSUM: checksum_of(here)} if checked else header)
    metadata = {HEADER: text} | ({CHECKSUM: _checksum(text)} if checked else {})
    with written_whole(path) as temporary:
        save_file(here, temporary, metadata=metadata)


def read_tensors(path: Path, *, matrices: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, memory-mapped, and its JSON header (empty if none).

    With `matrices=False`, tensors of two and more dimensions are on the meta device, without
    values, and only the header is compared with its checksum. A file that has none is read as it
    is.

    Raises SafetensorError, OSError or ValueError for a file that is damaged, or is no regular file.
    """
    refuse_irregular(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        text = metadata.get(HEADER, "{}")
        if metadata.get(CHECKSUM, _checksum(text)) != _checksum(text):
            raise ValueError("its header does not fit its checksum: a part of it was changed")
        header = parsed_json(text)
        wanted = header.pop(CHECKSUM, None) if isinstance(header, dict) else None
        if (wanted is None) != (CHECKSUM not in metadata):
            raise ValueError("one of its two checksums is missing: a part of it was changed")
        names = file.keys()
        if matrices:
            tensors = {name: file.get_tensor(name) for name in names}
            if wanted is not None and checksum_of(tensors) != wanted:
                raise ValueError("its tensors do not fit their checksum: a part was changed")
            return tensors, header
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        return {
            name: torch.empty(shape, device="meta") if len(shape) > 1 else file.get_tensor(name)
            for name, shape in shapes.items()
        }, header


def sha256_of(path: Path) -> str:
    """The sha256 of a file, which is read a part at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """The CRC-32 of names, dtypes, shapes and bits of `tensors` on the CPU, in any order."""
    code = 0
    for name, tensor in sorted(tensors.items()):
        code = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), code)
        if tensor.numel():
            bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            code = zlib.crc32(bits.numpy().data, code)
    return f"{code:08x}"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` of a JSON file with the checksum of all of it under `CHECKSUM`."""
    return {**content, CHECKSUM: _checksum(_canonical(content))}


def without_checksum(content: Any, keys: Collection[str]) -> dict[str, Any]:
    """What `with_checksum` was given, of a JSON file that was read; older files have no checksum.

    Raises ValueError where the checksum is another one, or where a key is none of `keys`.
    """
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    found = {name: value for name, value in content.items() if name != CHECKSUM}
    unknown = found.keys() - set(keys)
    if unknown:
        raise ValueError(f"it has the unknown key {min(unknown)!r}")
    if CHECKSUM in content and content[CHECKSUM] != _checksum(_canonical(found)):
        raise ValueError("its content does not fit its checksum: a part of it was changed")
    return found


def changed_part(path: Path) -> str | None:
    """The part of a file of `torch.save` that has another checksum than the file says, if any.

    torch writes a zip file with a CRC-32 of each part, and `torch.load` does not look at it. A
    checksum of 0 is none (`torch.serialization.set_crc32_options(False)`); older files have none.
    """
    name = "its table of contents"
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as parts:
            for part in parts.infolist():
                name = part.filename
                if part.CRC:
                    with parts.open(part) as file:
                        while file.read(1 << 20):
                            pass
    except MemoryError:
        raise
    except Exception:  # a flipped bit in the file's own lists can make zipfile raise anything
        return name
    return None


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(json.loads(json.dumps(content)), sort_keys=True)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
