"""Caches the inputs of preserved text on disk, for each base model.

Gathering them takes a forward pass of all lines: 20 seconds for a small model on a CPU. Knows
how a base is recognised, and nothing of how the inputs are used.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from easyedit_mend_parallel.files import cache_folder, read_tensors, write_tensors
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.text_batch import batch_of_ids
from easyedit_mend_parallel.method.least_squares import PreservedRows, bytes_for_a_token
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.weights.offload import kept_weight
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.whole import whole_tensor

log = logging.getLogger(__name__)

KIND, FORMAT_VERSION = "preserved inputs", 2
SAMPLED = 4096
"""Number of entries of each weight by which a base is recognised."""
AT_ONCE = 64
"""How many lines go through the model together."""
SILENT_SECONDS = 2.0
"""How long that may take before a message and a progress bar show it."""


def gathered_once(
    model: Any, targets: Sequence[Target], ids: Sequence[tuple[int, ...]], limit: int
) -> PreservedInputs:
    """The targets' inputs for texts with these token `ids`, read from the cache or gathered.

    The base is recognised by its parameters' names, shapes and dtypes and by `SAMPLED` entries of
    each. Rows and Gram matrices are rounded to fp32, so that cached and gathered ones are equal. If
    the cache cannot be read or written, the inputs are gathered. For a model that is split between
    processes nothing is cached. Texts go through the model in parts whose rows take at most `limit`
    bytes, the shortest texts first.
    """
    ranks = Ranks.of(model)
    path = None
    if ranks.alone:
        path = cache_folder() / "preserved" / f"{_key(model, targets, ids)}.safetensors"
        found = read_inputs(path, targets)
        if found is not None:
            return found
    at_once = limit // bytes_for_a_token(targets)
    by_length = sorted(ids, key=len)  # so that little of a part is padding
    with ranks.agree("make the batches of text to preserve"):
        batches = [batch_of_ids(model, some) for some in _batched(by_length)]
    parts = (part for batch in _with_bar(batches) for part in batch.parts(at_once))
    with _said_if_slow(len(ids), path):
        gathered = PreservedInputs.gathered(model, targets, parts)
    rounded = PreservedInputs({name: _rounded(rows) for name, rows in gathered.of.items()})
    if path is not None:
        try:
            write_inputs(path, rounded)
        except OSError as error:
            log.info("the inputs of preserved text are not cached: %s", error)
    return rounded


def _batched(ids: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start : start + AT_ONCE]


def _with_bar(batches: list[Batch]) -> Iterable[Batch]:
    """The batches, with a progress bar on a terminal."""
    bar: Iterable[Batch] = tqdm(
        batches,
        desc="preserved text",
        delay=SILENT_SECONDS,
        disable=None,
        leave=False,
        unit=" part",
    )
    return bar


@contextmanager
def _said_if_slow(lines: int, path: Path | None) -> Iterator[None]:
    """Log one line if the context lasts longer than `SILENT_SECONDS`, and nothing otherwise."""
    message = "the first batch of a base runs %d lines of preserved text through the model" + (
        ", once: their inputs are kept in %s" if path is not None else ""
    )
    values = (lines,) if path is None else (lines, path)
    timer = threading.Timer(SILENT_SECONDS, log.warning, (message, *values))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _key(model: nn.Module, targets: Sequence[Target], ids: Sequence[tuple[int, ...]]) -> str:
    digest = hashlib.sha256(repr((KIND, FORMAT_VERSION, list(ids))).encode())
    digest.update(repr([target.name for target in targets]).encode())
    for name, _ in sorted(model.named_parameters()):
        weight = kept_weight(model, name)
        if weight is None:
            continue
        weight = whole_tensor(weight)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        numbers = weight.reshape(-1)
        some = numbers[:: max(1, numbers.numel() // SAMPLED)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _rounded(rows: PreservedRows) -> PreservedRows:
    gram = None if rows.gram is None else rows.gram.float().double()
    return PreservedRows(rows.count, None if rows.rows is None else rows.rows.float(), gram)


def write_inputs(path: Path, inputs: PreservedInputs) -> None:
    """Write a file for `read_inputs`, whole or not at all. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, Any] = {}
    for name, rows in inputs.of.items():
        counts[name] = rows.count
        if rows.gram is not None:
            tensors[f"{name}.gram"] = rows.gram.float()
        elif rows.rows is not None:
            tensors[f"{name}.rows"] = rows.rows.float()
    write_tensors(path, tensors, {"kind": KIND, "counts": counts})


def read_inputs(path: Path, targets: Sequence[Target]) -> PreservedInputs | None:
    """The targets' inputs for preserved text; None if the file is missing or damaged."""
    if not path.is_file():
        return None
    try:
        tensors, header = read_tensors(path)
        of: dict[str, PreservedRows] = {}
        for target in targets:
            gram, rows = tensors.get(f"{target.name}.gram"), tensors.get(f"{target.name}.rows")
            width = target.in_features
            if gram is not None and tuple(gram.shape) != (width, width):
                raise ValueError(f"the Gram matrix of {target.name} has another shape")
            if gram is None and (rows is None or rows.dim() != 2 or rows.shape[1] != width):
                raise ValueError(f"there are no rows of {target.name}")
            exact = None if gram is None else gram.double()
            of[target.name] = PreservedRows(int(header["counts"][target.name]), rows, exact)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): its content is gathered again", path, error)
        return None
    return PreservedInputs(of)
