"""Saved edits that are solved together: their rows in files, on a model, and as one update.

Knows sequences and files, and nothing of how rows are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.method.growing_system import SolveRows, SystemOptions, empty_systems
from easyedit_mend_parallel.method.preserved_cache import gathered_once
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.method.sequence import EditSequence
from easyedit_mend_parallel.method.sequence_edit import SequenceEdit
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights.placement import Placement
from easyedit_mend_parallel.weights.target import Target

if TYPE_CHECKING:
    from easyedit_mend_parallel.edits.saved import SavedEdit

MEMORY = 4 << 30
"""`sequence_memory` where no editor says another."""
AT_ONCE = 1 << 30
"""Bytes of rows while preserved text is gathered for saved edits."""
PARTS = tuple(field.name for field in fields(SolveRows))


def rows_as_tensors(
    rows: Mapping[str, SolveRows], options: SystemOptions
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a file holds of `rows` {target name: rows} and `options`: tensors, and values."""
    tensors = {
        f"{name}.solve.{part}": getattr(one, part) for name, one in rows.items() for part in PARTS
    }
    lengths = [len(ids) for ids in options.preserved]
    tensors["preserved.ids"] = torch.tensor(sum(options.preserved, ()), dtype=torch.int32)
    tensors["preserved.lengths"] = torch.tensor(lengths, dtype=torch.int32)
    about = asdict(options)
    del about["preserved"]
    return tensors, about


def rows_of_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any], targets: Mapping[str, Target]
) -> tuple[dict[str, SolveRows], SystemOptions]:
    """The way back from `rows_as_tensors`.

    Raises KeyError, TypeError or ValueError for what does not fit the targets.
    """
    rows = {}
    for name, target in targets.items():
        one = SolveRows(*(tensors[f"{name}.solve.{part}"] for part in PARTS))
        n = len(one.x)
        shapes = [tuple(getattr(one, part).shape) for part in PARTS]
        wanted = [(n, target.in_features), (n, 1), (n, target.out_features), (n, 1), (n,), (n,)]
        if shapes != wanted:
            raise ValueError(f"the rows to solve of {name} do not fit its widths")
        rows[name] = replace(one, label_mask=one.label_mask.bool(), request=one.request.long())
    ids = torch.split(tensors["preserved.ids"].long(), tensors["preserved.lengths"].tolist())
    preserved = tuple(tuple(text.tolist()) for text in ids)
    return rows, SystemOptions(**about, preserved=preserved)


def put_together(
    model: nn.Module,
    targets: Sequence[Target],
    placements: Mapping[str, Placement],
    edits: Sequence[SavedEdit],
    apply: str,
) -> list[SequenceEntry]:
    """Solve `edits` together with those that are in `model`, as one change; a handle on each.

    All have rows of the same options. Raises what `EditSequence.restore` raises.
    """
    options = edits[0].options
    assert options is not None
    sequence = EditSequence.of(model, targets, apply, options, MEMORY)
    made = []
    for edit in edits:
        assert edit.solve_rows is not None
        device = {name: placements[name].device for name in edit.solve_rows}
        made.append(
            SequenceEdit(
                list(edit.requests),
                alone={name: one.to(device[name]) for name, one in edit.updates.items()},
                rows={name: one.to(device[name]) for name, one in edit.solve_rows.items()},
            )
        )
    preserved = options.preserved
    sequence.restore(
        made, lambda: gathered_once(model, targets, preserved, AT_ONCE) if preserved else None
    )
    return [SequenceEntry(sequence, edit) for edit in made]


def solved(edits: Sequence[SavedEdit], preserved: PreservedInputs | None) -> SavedEdit:
    """`edits` that have rows as one, whose update is the solution of all; it has no rows itself.

    `preserved` are the inputs of preserved text on their base. Raises EditError for edits of other
    options, and where inputs are needed and not given.
    """
    first = edits[0]
    if len(edits) == 1:
        return first
    options = first.options
    if options is None or any(edit.options != options for edit in edits):
        raise EditError(
            "these edits were made by several networks or with several options, so they are not "
            "solved together: put them onto the model, and save that with save_edited"
        )
    if options.preserved and preserved is None:
        raise EditError(
            "the journal does not hold what the targets see of preserved text: put the edits onto "
            "the model once (Journal.apply_to), and try again"
        )
    systems = empty_systems(list(first.targets.values()), options, preserved)
    for edit in edits:
        assert edit.solve_rows is not None
        for name, system in systems.items():
            system.add(edit.solve_rows[name])
    updates = {name: system.net() for name, system in systems.items()}
    return replace(
        first,
        updates=updates,
        positions={name: torch.arange(len(update.keys)) for name, update in updates.items()},
        requests=[request for edit in edits for request in edit.requests],
        about={name: one for name, one in first.about.items() if name not in ("tokens", "rows")},
        solve_rows=None,
        options=None,
    )
