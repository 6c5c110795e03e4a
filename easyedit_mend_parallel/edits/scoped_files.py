"""Reads and writes the files of a model's scoped edits: an index, keys, rows, and checksums.

Knows files, requests and rows, and no base model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from easyedit_mend_parallel.edits.forms import ScopedIndex
from easyedit_mend_parallel.edits.saved import package_versions
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import (
    is_there,
    parsed_json,
    read_tensors,
    sha256_of,
    write_tensors,
)
from easyedit_mend_parallel.files.forms import instance_of, of_form
from easyedit_mend_parallel.method.kept_scope import scope_header, scope_of
from easyedit_mend_parallel.weights.rows_file import RowsPlace, rows_at, stacked
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, ScopedUpdate
from easyedit_mend_parallel.weights.scoped_memory import ScopedMemory
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

KIND, FORMAT_VERSION = "scoped edits", 1
INDEX, KEYS_FILE = "scoped.json", "keys.safetensors"
ROWS_IN_A_FILE = 1 << 26
"""Maximum size of the rows in one file, unless a single request has more."""


@dataclass(frozen=True)
class SavedScopes:
    """A folder whose checksums were compared. Its rows are still in their files."""

    folder: Path
    scope: Scope
    targets: list[Target]
    requests: list[dict[str, Any]]
    keys: list[tuple[Tensor, Tensor]]
    stacks: list[str]
    files: list[str]
    about: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> SavedScopes:
        index = _index(folder)
        try:
            _refuse_unfit(of_form(index, ScopedIndex, INDEX))
        except ValueError as error:
            raise EditError(f"{folder} is damaged: {error}") from error
        for name, expected in index["files"].items():
            path = folder / name
            try:
                found = sha256_of(path) if path.is_file() else None
            except OSError as error:
                raise EditError(f"{path} cannot be read: {error.strerror or error}") from error
            if found != expected:
                raise EditError(
                    f"{path} is missing, cut short or changed: its checksum is not that of "
                    f"{INDEX}. Copy the whole folder again, or make the edits again"
                )
        try:
            tensors, _ = read_tensors(folder / KEYS_FILE)
            lengths = [int(length) for length in index["lengths"]]
            if min(lengths, default=0) < 0 or sum(lengths) != len(tensors["keys"]):
                raise ValueError("it has not as many keys as it says")
            keys, weights = (
                torch.split(tensors[name].clone(), lengths) for name in ("keys", "weights")
            )
            return cls(
                folder,
                scope_of(index["scope"], _of_scope(tensors)),
                [instance_of(Target, one, "a target") for one in index["targets"]],
                index["requests"],
                list(zip(keys, weights, strict=True)),
                index["stacks"],
                [name for name in index["files"] if name != KEYS_FILE],
                index["about"],
            )
        except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise EditError(f"{folder} is damaged: {type(error).__name__} {error}") from error

    def refuse_other_tokenizer(self, read: Callable[[list[int]], str]) -> None:
        for one in self.requests:
            if [read(list(answer)) for answer in one["answers"]] != one["reads"]:
                raise EditError(
                    f"{self.folder} was saved with another tokenizer: the tokens of "
                    f"{one['target']!r} are another text with this one. Give the tokenizer of "
                    "that model"
                )

    def updates(self, read: Any, limit: int) -> Iterator[tuple[int, dict[str, ScopedUpdate]]]:
        """(edit, its updates), oldest first, with the rows of one file in memory at a time."""
        numbered = list(enumerate(self.requests))
        for (file, edit), group in groupby(numbered, lambda one: (one[1]["file"], one[1]["edit"])):
            chosen = list(group)
            requests = tuple(
                ScopedRequest(
                    one["prompt"],
                    one["target"],
                    *self.keys[number],
                    tuple(one["subject"]),
                    tuple(map(tuple, one["answers"])),
                )
                for number, one in chosen
            )
            parts: dict[str, list[LowRankUpdate]] = {}
            numbers: dict[str, list[int]] = {}
            for number, (_, one) in enumerate(chosen):
                places = [RowsPlace(self.stacks[at], *rows) for at, *rows in one["rows"].values()]
                read_rows = rows_at(self.folder / self.files[file], places)
                for at, rows in zip(one["rows"], read_rows, strict=True):
                    target = self.targets[int(at)]
                    if (rows.keys.shape[1], rows.values.shape[1]) != target.shape:
                        raise EditError(
                            f"{self.folder} is damaged: the rows of {target.name} have other widths"
                        )
                    parts.setdefault(target.name, []).append(rows)
                    numbers.setdefault(target.name, []).append(number)
            yield (
                edit,
                {
                    name: _joined(of, numbers[name], requests, self.scope, read, limit)
                    for name, of in parts.items()
                },
            )


def _joined(
    parts: Sequence[LowRankUpdate],
    numbers: Sequence[int],
    requests: Sequence[ScopedRequest],
    scope: Scope,
    read: Any,
    limit: int,
) -> ScopedUpdate:
    """The rows of the requests with these numbers as one update, in the widest dtype of any."""
    mine = tuple(requests[number] for number in numbers)
    counts = torch.tensor([len(part.keys) for part in parts])
    return ScopedUpdate(
        torch.cat([part.keys for part in parts]),
        torch.cat([part.values for part in parts]),
        torch.arange(len(parts)).repeat_interleave(counts),
        requests=mine,
        scope=scope,
        read=read,
        limit=limit,
    )


def write_scopes(
    folder: Path, memory: ScopedMemory, targets: Sequence[Any], about: Mapping[str, Any]
) -> None:
    requests, names = memory.requests, [one["name"] for one in targets]
    said: list[dict[str, Any]] = []
    stacks: dict[str, int] = {}
    files: dict[str, str] = {}
    for number, chosen in enumerate(_in_files(requests, memory, names)):
        rows = [(at, name, update) for at, of in chosen for name, update in of.items()]
        tensors, places = stacked([(name, update) for _, name, update in rows])
        path = folder / f"rows-{number + 1:05}.safetensors"
        write_tensors(path, tensors, {})
        files[path.name] = sha256_of(path)
        lies: dict[int, dict[int, list[int]]] = {at: {} for at, _ in chosen}
        for (at, name, _), place in zip(rows, places, strict=True):
            stack = stacks.setdefault(place.stack, len(stacks))
            lies[at][names.index(name)] = [stack, place.start, place.stop]
        said += [_plain(memory, requests[at]) | {"file": number, "rows": lies[at]} for at in lies]
    scope = memory.scope.to(torch.device("cpu"))
    tensors = {
        "keys": torch.cat([request.keys.cpu() for request in requests]),
        "weights": torch.cat([request.weights.cpu() for request in requests]),
        **{name: value for name, value in vars(scope).items() if torch.is_tensor(value)},
    }
    write_tensors(folder / KEYS_FILE, tensors, {})
    files[KEYS_FILE] = sha256_of(folder / KEYS_FILE)
    index = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "scope": scope_header(scope),
        "targets": targets,
        "requests": said,
        "lengths": [len(request.keys) for request in requests],
        "stacks": list(stacks),
        "files": files,
        "about": {**about, "versions": package_versions()},
    }
    text = json.dumps(index, indent=1, ensure_ascii=False)
    kept = {"checksum": _digest(json.loads(text)), **index}
    (folder / INDEX).write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")


def _in_files(
    requests: Sequence[ScopedRequest], memory: ScopedMemory, names: Sequence[str]
) -> Iterator[list[tuple[int, dict[str, LowRankUpdate]]]]:
    """(number of a request, its rows) of as many requests as one file has, in order."""
    chosen: list[tuple[int, dict[str, LowRankUpdate]]] = []
    size = 0
    for number, request in enumerate(requests):
        found = {name: memory.rows(request, name) for name in names}
        rows = {name: update for name, update in found.items() if update is not None}
        more = sum(update.keys.nbytes + update.values.nbytes for update in rows.values())
        if chosen and size + more > ROWS_IN_A_FILE:
            yield chosen
            chosen, size = [], 0
        chosen.append((number, rows))
        size += more
    yield chosen


def _plain(memory: ScopedMemory, request: ScopedRequest) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "target": request.target,
        "subject": request.subject,
        "answers": request.answers,
        "reads": [memory.read(list(answer)) for answer in request.answers],
        "edit": memory.serial(request),
    }


def _refuse_unfit(index: ScopedIndex) -> None:
    """Raise ValueError where a number in the index points at nothing, or a name at another folder.

    Token ids are numbers that fit into 31 bits.
    """
    files = [name for name in index["files"] if name != KEYS_FILE]
    elsewhere = [name for name in index["files"] if Path(name).name != name]
    if elsewhere or KEYS_FILE not in index["files"]:
        raise ValueError(f"{elsewhere[0]!r} is no file of it" if elsewhere else f"no {KEYS_FILE}")
    if len(index["lengths"]) != len(index["requests"]):
        raise ValueError("it does not have keys for each request")
    for one in index["requests"]:
        places = one["rows"].values()
        fit = 0 <= one["file"] < len(files) and len(one["answers"]) == len(one["reads"])
        fit = fit and all(0 <= token < 1 << 31 for answer in one["answers"] for token in answer)
        fit = fit and one["rows"].keys() <= {str(n) for n in range(len(index["targets"]))}
        fit = fit and all(len(place) == 3 for place in places)
        fit = fit and all(0 <= at < len(index["stacks"]) for at, *_ in places)
        if not fit or not all(0 <= start <= stop < 1 << 31 for _, start, stop in places):
            raise ValueError(f"the rows or answers of {one['prompt']!r} are not where it says")


def _of_scope(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scope's tensors among those of the keys' file."""
    return {one.name: tensors[one.name].clone() for one in fields(Scope) if one.name in tensors}


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not is_there(path, EditError):
        raise EditError(f"no scoped edits are saved at {folder.absolute()}: {INDEX} is missing")
    try:
        index = parsed_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EditError(f"{path} is cut short or damaged: {error}") from error
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise EditError(f"{path} does not say that the folder has scoped edits")
    if index.get("format_version") != FORMAT_VERSION:
        raise EditError(
            f"{path} has format {index.get('format_version')!r}, and this version reads format "
            f"{FORMAT_VERSION}: install the easyedit-mend-parallel that wrote it"
        )
    if index.pop("checksum", None) != _digest(index):
        raise EditError(f"{path} was changed since it was written: its checksum is another one")
    return index


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
