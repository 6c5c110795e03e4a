"""Overlays: edited weights that accelerate's loader reads instead of the weights' files on disk.

accelerate's loader looks for a weight in its dictionary first, then in the files that its index
names. An overlay is a tensor in that dictionary or a private file in that index; the weight's own
file is never modified. Knows nothing of updates or of models.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from accelerate.utils import OffloadedWeightsLoader
from safetensors import SafetensorError
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.scratch_files import (
    WEIGHT,
    ScratchFile,
    ScratchFolder,
    write_scratch,
)

Entry: TypeAlias = Mapping[str, Any]
"""A loader's index entry of one weight: dtype and shape, or a safetensors file and a name."""

_ON_LOADER = "_easyedit_mend_parallel_overlays"


@dataclass(frozen=True)
class WeightSource:
    """What a loader finds under the keys of one weight: `tensor`, or the content of the files of
    `entries` ({key: index entry}, several for tied weights). `folder` is the folder of accelerate's
    `.dat` files."""

    tensor: Tensor | None
    entries: Mapping[str, Entry]
    folder: Any

    @property
    def file(self) -> Path | None:
        """The user's or accelerate's file from which the weight is read; None if there is none."""
        key, entry = next(iter(self.entries.items()))
        if self.tensor is not None or isinstance(entry, _ScratchEntry):
            return None
        return file_of(key, entry, self.folder)

    @property
    def is_read_afresh(self) -> bool:
        """Whether each read returns a new tensor, as with `.dat` files."""
        entry = next(iter(self.entries.values()))
        return self.tensor is None and entry.get("safetensors_file") is None

    def read(self, name: str) -> Tensor:
        """The weight `name`, on the CPU. Do not write to it.

        Raises UpdateError if its file cannot be read.
        """
        if self.tensor is not None:
            return self.tensor
        key, entry = next(iter(self.entries.items()))
        try:
            # Read as accelerate does, with a loader that no other code changes.
            loader = OffloadedWeightsLoader(save_folder=self.folder, index={key: entry})
            weight: Tensor = loader[key]
        except (OSError, SafetensorError, ValueError) as error:
            raise UpdateError(
                f"{name} cannot be read from {file_of(key, entry, self.folder)} ({error}): put the "
                "file back, or load the model again"
            ) from error
        return weight


class _ScratchEntry(dict[str, Any]):
    """An index entry that names a private file. The file exists as long as the entry."""

    def __init__(self, file: ScratchFile, dtype: str) -> None:
        super().__init__(safetensors_file=str(file.path), weight_name=WEIGHT, dtype=dtype)
        self.file = file


@dataclass
class Overlays:
    """The overlays of one loader. They are an attribute of the loader, so they are freed and copied
    with the loader's model."""

    own: dict[str, Entry] = field(default_factory=dict)
    """{key of a weight with an overlay: its entry in the index before that}"""
    limit: int | None = None
    """Maximum memory of the overlays in bytes; None: no limit."""
    _tensors: list[weakref.ref[Tensor]] = field(default_factory=list)
    _folder: ScratchFolder | None = None
    _versions: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, loader: OffloadedWeightsLoader) -> Overlays:
        overlays: Overlays | None = vars(loader).get(_ON_LOADER)
        if overlays is None:
            overlays = vars(loader)[_ON_LOADER] = cls()
        return overlays

    def own_entry(self, loader: OffloadedWeightsLoader, key: str) -> Entry:
        """The entry of `key` in the index without its overlay."""
        entry: Entry = self.own[key] if key in self.own else loader.index[key]
        return entry

    def source(self, loader: OffloadedWeightsLoader, keys: list[str]) -> WeightSource:
        """What the loader currently finds under `keys`."""
        entries = {key: loader.index[key] for key in keys}
        return WeightSource(loader.state_dict.get(keys[0]), entries, loader.save_folder)

    def new_source(
        self, loader: OffloadedWeightsLoader, keys: list[str], tensor: Tensor, name: str
    ) -> WeightSource:
        """A source that gives `tensor` under `keys`: itself, or above the limit a private file.

        `tensor` belongs to the caller and is on the CPU. Raises UpdateError, with the weight's
        `name`, if the file cannot be written.
        """
        if self.has_room(tensor.nbytes):
            self._tensors.append(weakref.ref(tensor))
            own = {key: self.own_entry(loader, key) for key in keys}
            return WeightSource(tensor, own, loader.save_folder)
        file = write_scratch(self._folder, tensor, name)
        self._folder = file.folder
        entry = _ScratchEntry(file, str(tensor.dtype).removeprefix("torch."))
        return WeightSource(None, dict.fromkeys(keys, entry), loader.save_folder)

    def has_room(self, size: int) -> bool:
        """Whether the limit allows another overlay of `size` bytes in memory."""
        self._tensors = [ref for ref in self._tensors if ref() is not None]
        taken = sum(held.nbytes for ref in self._tensors if (held := ref()) is not None)
        return self.limit is None or taken + size <= self.limit

    def is_shown(self, loader: OffloadedWeightsLoader, source: WeightSource) -> bool:
        return all(
            loader.index[key] is entry and loader.state_dict.get(key) is source.tensor
            for key, entry in source.entries.items()
        )

    def show(self, loader: OffloadedWeightsLoader, source: WeightSource) -> None:
        """Make the loader find `source`. After an error the call can be repeated."""
        for key, entry in source.entries.items():
            # The record comes first and goes last: a key that is in the dictionary but not in the
            # record is a weight that accelerate keeps in RAM.
            own = self.own.setdefault(key, loader.index[key])
            loader.index[key] = entry
            if source.tensor is not None:
                loader.state_dict[key] = source.tensor
                continue
            loader.state_dict.pop(key, None)
            if entry is own:
                del self.own[key]

    def is_changed(self, file: Path) -> bool:
        """Whether `file` has changed since the first call for it (which may be this one).

        Raises OSError if its size and time of change cannot be read.
        """
        found = file.stat()
        version = (found.st_size, found.st_mtime_ns)
        return self._versions.setdefault(file, version) != version


def file_of(key: str, entry: Entry, folder: Any) -> Path:
    """The file that has the weight of an index entry."""
    file = entry.get("safetensors_file")
    return Path(folder, f"{key}.dat") if file is None else Path(file)
