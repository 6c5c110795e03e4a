"""Rows of many updates in one safetensors file, each to be read by itself.

Knows names, rows and files; knows no request and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.update import LowRankUpdate

KEYS, VALUES = "keys", "values"


@dataclass(frozen=True)
class RowsPlace:
    """Where the rows of one update lie in a file: rows `start` to `stop` of the two tensors
    `stack`.keys and `stack`.values."""

    stack: str
    start: int
    stop: int


def stacked(
    updates: Sequence[tuple[str, LowRankUpdate]],
) -> tuple[dict[str, Tensor], list[RowsPlace]]:
    """The tensors of a file for `updates` ((target name, update)), and where each one lies in it.

    Rows of one target in the same dtypes are one below the other, on the CPU, with their bits.
    """
    stacks: dict[str, list[LowRankUpdate]] = {}
    places, lengths = [], dict[str, int]()
    for target, update in updates:
        stack = f"{target}.{_name(update.keys)}.{_name(update.values)}"
        stacks.setdefault(stack, []).append(update)
        start = lengths.get(stack, 0)
        lengths[stack] = start + len(update.keys)
        places.append(RowsPlace(stack, start, lengths[stack]))
    tensors = {}
    for stack, parts in stacks.items():
        tensors[f"{stack}.{KEYS}"] = torch.cat([part.keys.detach().cpu() for part in parts])
        tensors[f"{stack}.{VALUES}"] = torch.cat([part.values.detach().cpu() for part in parts])
    return tensors, places


def rows_at(path: Path, places: Mapping[str, RowsPlace]) -> dict[str, LowRankUpdate]:
    """{target name: the rows at its place in the file}, on the CPU, in the dtypes of the file.

    Raises UpdateError where the file does not have them.
    """
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for target, place in places.items():
                rows = [
                    file.get_slice(f"{place.stack}.{part}")[place.start : place.stop].clone()
                    for part in (KEYS, VALUES)
                ]
                if any(len(part) != place.stop - place.start for part in rows):
                    raise UpdateError(f"{path} has fewer rows of {target} than it should")
                numbers = torch.zeros(len(rows[0]), dtype=torch.long)
                found[target] = LowRankUpdate(rows[0], rows[1], numbers)
    except (OSError, SafetensorError) as error:
        raise UpdateError(
            f"rows of scoped edits cannot be read from {path} ({error}): undo the edits "
            "(rollback_all) and make them again"
        ) from error
    return found


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
