"""Solves saved edits together: stores their rows in files, applies them, combines them into one.

Knows sequences and files, and nothing of how rows are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files.forms import instance_of
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
"""`sequence_memory` if no editor has set another."""
AT_ONCE = 1 << 30
"""Bytes of rows while preserved text is gathered for saved edits."""
PARTS = tuple(field.name for field in fields(SolveRows))


def rows_as_tensors(
    rows: Mapping[str, SolveRows], options: SystemOptions
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`rows` {target name: rows} and `options` as tensors and as values of a file's header."""
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
    """The inverse of `rows_as_tensors`.

    Raises KeyError or ValueError if the tensors do not fit the targets or each other.
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
    ids, lengths = tensors["preserved.ids"], tensors["preserved.lengths"]
    whole = ids.dim() == lengths.dim() == 1 and not ids.is_floating_point()
    if not whole or bool((lengths < 0).any()) or int(lengths.sum()) != len(ids):
        raise ValueError("the token ids of its preserved text are not as many as they should be")
    preserved = tuple(tuple(text.tolist()) for text in torch.split(ids.long(), lengths.tolist()))
    options = instance_of(SystemOptions, about, "its system")
    return rows, replace(options, preserved=preserved)


def put_together(
    model: nn.Module,
    targets: Sequence[Target],
    placements: Mapping[str, Placement],
    edits: Sequence[SavedEdit],
    apply: str,
) -> list[SequenceEntry]:
    """Solve `edits` together with those in `model`, as one change. Returns an entry for each.

    All edits must have rows with the same options. Raises what `EditSequence.restore` raises.
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
    """Combine `edits` that have rows into one edit, whose update is the solution of all. The result
    has no rows to solve.

    `preserved` are the inputs of preserved text in the base. Raises EditError for edits with
    different options, and if inputs are needed and missing.
    """
    first = edits[0]
    if len(edits) == 1:
        return first
    options = first.options
    if options is None or any(edit.options != options for edit in edits):
        raise EditError(
            "these edits were made by several networks or with several options, so they are not "
            "solved together: apply them to the model, and save that with save_edited"
        )
    if options.preserved and preserved is None:
        raise EditError(
            "the journal does not have the inputs of preserved text: apply the edits to the model "
            "once (Journal.apply_to), and try again"
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
