"""Exports an edit as a state-dict delta: a safetensors file of {parameter name: matrix to add}.

For tools that do not know low-rank updates. Computes and writes a few rows at a time. Knows no
model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.edits.saved import SavedEdit, refuse_scoped
from easyedit_mend_parallel.files import written_whole
from easyedit_mend_parallel.weights.update import WRITE_LIMIT

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""safetensors' names of the dtypes that a delta can have."""


def export_delta(edit: SavedEdit, path: str | Path) -> Path:
    """Write {parameter name: delta} to `path`, whole or not at all.

    Each delta has the shape and dtype of the edited weight, so that adding it gives the same as a
    written edit; for a quantized weight the dtype is fp32. A tied weight appears once, under the
    name of the target. An expert's delta is that of its slice, under the name of the slice.
    """
    refuse_scoped(edit, "a delta")
    dtypes = {name: _dtype(edit, name) for name in edit.targets}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, target in edit.targets.items():
        shape = target.shape if target.transposed else target.shape[::-1]
        start, end = end, end + math.prod(shape) * dtypes[name].itemsize
        header[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, target in edit.targets.items():
            update = edit.updates[name]
            left, right = update.values, update.keys
            if target.transposed:
                left, right = right, left
            step = max(1, WRITE_LIMIT // max(1, right.shape[1]))
            for columns in torch.split(left, step, dim=1):
                file.write(_bytes((columns.T @ right).to(dtypes[name])))
    return path


def _dtype(edit: SavedEdit, name: str) -> torch.dtype:
    weights = edit.about["base"]["weights"]
    dtype = getattr(torch, weights[name]["dtype"], None)
    return dtype if dtype in NAMES else torch.float32


def _bytes(rows: Tensor) -> bytes:
    return rows.contiguous().view(torch.uint8).numpy().tobytes()
