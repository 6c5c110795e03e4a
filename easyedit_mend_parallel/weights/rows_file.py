"""Rows of many updates in one safetensors file, each to be read by itself.

Knows names, rows and files; knows no request and no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.update import LowRankUpdate

KEYS, VALUES = "keys", "values"


@dataclass(frozen=True, slots=True)
class RowsPlace:
    """Where the rows of one update lie in a file: rows `start` to `stop` of the two tensors
    `stack`.keys and `stack`.values."""

    stack: str
    start: int
    stop: int


def stacked(
    updates: Sequence[tuple[str, LowRankUpdate]],
) -> tuple[dict[str, Tensor], list[RowsPlace]]:
    """The tensors of a file for `updates` ((name, update)), and where each one lies in it.

    Rows with one name, of the same widths and dtypes, are one below the other, on the CPU, with
    their bits.
    """
    stacks: dict[str, list[LowRankUpdate]] = {}
    places, lengths = [], dict[str, int]()
    for target, update in updates:
        stack = f"{target}.{_kind(update.keys)}.{_kind(update.values)}"
        stacks.setdefault(stack, []).append(update)
        start = lengths.get(stack, 0)
        lengths[stack] = start + len(update.keys)
        places.append(RowsPlace(stack, start, lengths[stack]))
    tensors = {}
    for stack, parts in stacks.items():
        tensors[f"{stack}.{KEYS}"] = torch.cat([part.keys.detach().cpu() for part in parts])
        tensors[f"{stack}.{VALUES}"] = torch.cat([part.values.detach().cpu() for part in parts])
    return tensors, places


def rows_at(path: Path, places: Sequence[RowsPlace]) -> list[LowRankUpdate]:
    """The rows at each place in the file, on the CPU, in the dtypes of the file.

    Raises UpdateError where the file does not have them.
    """
    found = []
    try:
        with safe_open(path, framework="pt") as file:
            for place in places:
                keys, values = (
                    file.get_slice(f"{place.stack}.{part}")[place.start : place.stop].clone()
                    for part in (KEYS, VALUES)
                )
                found.append(LowRankUpdate(keys, values, torch.zeros(len(keys), dtype=torch.long)))
    except (OSError, ValueError, SafetensorError) as error:
        raise UpdateError(
            f"rows of scoped edits cannot be read from {path} ({error}): undo the edits "
            "(rollback_all) and make them again"
        ) from error
    return found


def _kind(rows: Tensor) -> str:
    return f"{rows.shape[1]}-{str(rows.dtype).removeprefix('torch.')}"
