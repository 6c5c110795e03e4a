"""Reads preserved text, and gathers the inputs of each target for it.

A batch of edits must not change the outputs for these inputs. Knows nothing of edits or systems.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.files import text_lines
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import layer_rows
from easyedit_mend_parallel.method.least_squares import PreservedRows
from easyedit_mend_parallel.weights.target import Target

SHIPPED = "preserved_text.txt"
"""Everyday sentences, one per line, which ship with this package."""


def lines_of(path: str | Path | None) -> tuple[str, ...]:
    """The lines of a text file, without empty ones; with None, those that ship with this package.

    Raises HparamsError if the file cannot be read or holds no text.
    """
    shipped = resources.files("easyedit_mend_parallel.method").joinpath(SHIPPED)
    return text_lines(shipped if path is None else Path(path), "preserved_text", HparamsError)


class PreservedInputs:
    """The inputs of each target for the lines of preserved text, `of` {target name: inputs}.

    If there are more tokens than a target has inputs, only their Gram matrix is kept.
    """

    def __init__(self, of: dict[str, PreservedRows]) -> None:
        self.of = of

    @classmethod
    def gathered(
        cls, model: nn.Module, targets: Sequence[Target], batches: Iterable[Batch]
    ) -> PreservedInputs:
        """From one forward pass of each batch. Raises what `layer_rows` raises."""
        of: dict[str, PreservedRows] = {}
        for batch in batches:
            seen = layer_rows(model, targets, batch)
            for target in targets:
                x = seen[target.name].x
                of[target.name] = _more(of.get(target.name), x, target.in_features)
        return cls(of)


def _more(known: PreservedRows | None, x: torch.Tensor, width: int) -> PreservedRows:
    """`known` with the rows x (n, in) added: as rows up to `width` rows, then as Gram matrix."""
    count, rows, gram = len(x), x, None
    if known is not None:
        count += known.count
        gram = known.gram
        rows = x if known.rows is None else torch.cat([known.rows, x])
    if count <= width:
        return PreservedRows(count, rows)
    wide = rows.double()
    total = wide.T @ wide
    return PreservedRows(count, None, total if gram is None else gram + total)
