"""Combines edits into one of bounded rank, and measures the error. Knows no model.

Uses QR and SVD of the rows, and never forms a matrix of the weight's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from easyedit_mend_parallel.edits.merging import merge_edits
from easyedit_mend_parallel.edits.saved import SavedEdit, refuse_scoped
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.weights.update import LowRankUpdate

ROWS_AT_ONCE = 2048
"""Maximum number of rows in one decomposition. An update with more rows is squashed in parts: a
good approximation of its rank, but not the best. Its error is measured in both cases."""
OF_ROWS = ("tokens", "rows")
"""Header entries about an edit's rows, which do not apply to the squashed edit."""
TRUE_RANK_ERROR = 1e-6
"""The relative error (Frobenius) within which an update has its true rank: fp32 rows have more."""
NO_REQUEST = -1
"""The request of a row that belongs to all requests of its edit."""


def squash(edits: SavedEdit | Sequence[SavedEdit], rank: int) -> SavedEdit:
    """One edit whose update has at most `rank` rows for each target: the nearest to the sum of
    `edits` in the Frobenius norm (Eckart and Young 1936).

    `about["squashed"]` of the result has the `rank`, the original number of `rows`, and `errors`
    {target name: ‖ΔW − squashed‖ / ‖ΔW‖}. Rows no longer belong to one request or token. Raises
    EditError for a rank below 1, for an empty list, and for edits of different shapes.
    """
    if rank < 1:
        raise EditError(f"rank is {rank}; it must be at least 1")
    edit = merge_edits([edits] if isinstance(edits, SavedEdit) else list(edits))
    refuse_scoped(edit, "one update of several requests")
    squashed, errors = {}, {}
    for name, update in edit.updates.items():
        squashed[name], errors[name] = squashed_update(update, rank)
    return _with(edit, squashed, errors, rank)


def of_true_rank(edit: SavedEdit, error: float = TRUE_RANK_ERROR) -> SavedEdit:
    """`edit` with as few rows for each target as its update needs within `error` (relative,
    Frobenius).

    A batch of edits may have as many rows as a layer has inputs, and most of them add nothing: four
    facts of 1,536 rows had a rank of 16. `about["squashed"]` is that of `squash`. An edit none of
    whose updates gets smaller is returned unchanged.
    """
    fewer, errors = dict(edit.updates), dict.fromkeys(edit.updates, 0.0)
    for name, update in edit.updates.items():
        if len(update.keys) > 1:
            rank = _rank(update, error)
            if rank < len(update.keys):
                fewer[name], errors[name] = squashed_update(update, rank)
    if all(fewer[name] is edit.updates[name] for name in fewer):
        return edit
    return _with(edit, fewer, errors, max(len(update.keys) for update in fewer.values()))


def _with(
    edit: SavedEdit, squashed: dict[str, LowRankUpdate], errors: dict[str, float], rank: int
) -> SavedEdit:
    about = {name: value for name, value in edit.about.items() if name not in OF_ROWS}
    about["squashed"] = {"rank": rank, "rows": edit.rows, "errors": errors}
    positions = {name: torch.arange(len(update.keys)) for name, update in squashed.items()}
    return replace(
        edit, updates=squashed, positions=positions, about=about, solve_rows=None, options=None
    )


def squashed_update(update: LowRankUpdate, rank: int) -> tuple[LowRankUpdate, float]:
    """`update` with at most `rank` rows, in fp32, and its relative error (Frobenius).

    Computed in fp64 on the update's device. With m = 2 · max(`ROWS_AT_ONCE`, `rank`), the largest
    matrices are rows × width and at most m × m. An update of `rank` or fewer rows is returned
    unchanged.
    """
    if len(update.keys) <= rank:
        return update, 0.0
    keys, values = update.keys.double(), update.values.double()
    parts = _parts(keys, values)
    kept = parts[0][0][:0], parts[0][1][:0]
    for number, (more_keys, more_values) in enumerate(parts, 1):
        kept = _nearest(
            torch.cat([kept[0], more_keys]),
            torch.cat([kept[1], more_values]),
            rank if number == len(parts) else max(rank, ROWS_AT_ONCE),
        )
    # The error includes the rounding to fp32.
    rounded = kept[0].float(), kept[1].float()
    whole = _square(keys, values)
    left = _square(
        torch.cat([keys, rounded[0].double()]), torch.cat([values, -rounded[1].double()])
    )
    error = (left / whole).clamp(min=0).sqrt() if whole > 0 else torch.zeros(())
    request = torch.full((len(rounded[0]),), NO_REQUEST, device=update.keys.device)
    return LowRankUpdate(*rounded, request), float(error)


def _rank(update: LowRankUpdate, error: float) -> int:
    """The smallest number of rows, at least 1, with which the update is within `error`."""
    if len(update.keys) > ROWS_AT_ONCE:
        update, _ = squashed_update(update, ROWS_AT_ONCE)
    key_rest = torch.linalg.qr(update.keys.double().T, mode="r").R
    value_rest = torch.linalg.qr(update.values.double().T, mode="r").R
    sizes = torch.linalg.svdvals(value_rest @ key_rest.T).square()
    left = sizes.flip(0).cumsum(0).flip(0)  # what is lost where all from here on are dropped
    return max(1, int((left > error**2 * left[0]).sum()))


def _parts(keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    halves = torch.split(keys, ROWS_AT_ONCE), torch.split(values, ROWS_AT_ONCE)
    return list(zip(*halves, strict=True))


def _nearest(keys: Tensor, values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Rows of the matrix of `rank` nearest to valuesᵀ keys; key and value of a row have one
    norm."""
    if len(keys) <= rank:
        return keys, values
    key_basis, key_rest = torch.linalg.qr(keys.T)
    value_basis, value_rest = torch.linalg.qr(values.T)
    left, sizes, right = torch.linalg.svd(value_rest @ key_rest.T, full_matrices=False)
    root = sizes[:rank].sqrt()
    return (
        root[:, None] * (right[:rank] @ key_basis.T),
        root[:, None] * (left[:, :rank].T @ value_basis.T),
    )


def _square(keys: Tensor, values: Tensor) -> Tensor:
    """‖valuesᵀ keys‖², from blocks of the Gram matrices."""
    total = torch.zeros((), dtype=keys.dtype, device=keys.device)
    for some_keys, some_values in _parts(keys, values):
        total += ((some_keys @ keys.T) * (some_values @ values.T)).sum()
    return total
