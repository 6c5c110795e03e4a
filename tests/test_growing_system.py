"""A system that grows gives the solution of all its rows, whatever their order, and gives it back.

On systems of 30 inputs and 12 outputs, against one solve of all rows in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.method.growing_system import GrowingSystem, SolveRows, SystemOptions
from easyedit_mend_parallel.method.least_squares import PreservedRows
from easyedit_mend_parallel.weights.update import LowRankUpdate

IN, OUT, LABEL_WEIGHT, TEXT_WEIGHT = 30, 12, 10.0, 0.3
OPTIONS = SystemOptions(1e-2, LABEL_WEIGHT, TEXT_WEIGHT, network=0)


def edits(count: int, n: int = 7) -> list[SolveRows]:
    made = torch.Generator().manual_seed(5)
    return [
        SolveRows.of(
            torch.randn(n, IN, generator=made),
            torch.randn(n, OUT, generator=made),
            torch.arange(n) > n - 3,
            torch.zeros(n, dtype=torch.long),
        )
        for _ in range(count)
    ]


def text() -> PreservedRows:
    rows = torch.randn(40, IN, generator=torch.Generator().manual_seed(6))
    return PreservedRows(40, None, rows.double().T @ rows.double())


def expected(rows: list[SolveRows], preserved: PreservedRows) -> Tensor:
    """(OUT, IN): one solve of everything."""
    x, d = (torch.cat(one) for one in zip(*(r.rows(LABEL_WEIGHT) for r in rows), strict=True))
    assert preserved.gram is not None
    ridge = OPTIONS.ridge * preserved.mean_square
    gram = x.T @ x + TEXT_WEIGHT * preserved.gram + ridge * torch.eye(IN).double()
    return torch.linalg.solve(gram, x.T @ d).T


def matrix(update: LowRankUpdate) -> Tensor:
    return (update.values.T @ update.keys).double()


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * other.abs().max())


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 40])
def test_the_solution_is_that_of_all_rows_at_once(count: int) -> None:
    rows, system = edits(count), GrowingSystem("w", OPTIONS, text())
    for one in rows:
        system.add(one)
    assert close(matrix(system.net()), expected(rows, text()))
    assert system.error() < 1e-10


def test_the_order_of_edits_makes_no_difference_beyond_rounding() -> None:
    rows, one, other = edits(12), *(GrowingSystem("w", OPTIONS, text()) for _ in range(2))
    for forward, backward in zip(rows, reversed(rows), strict=True):
        one.add(forward)
        other.add(backward)
    assert close(matrix(one.net()), matrix(other.net()))


def test_the_last_edit_comes_out_to_the_bit() -> None:
    rows, system = edits(3), GrowingSystem("w", OPTIONS, text())
    system.add(rows[0])
    system.add(rows[1])
    before = system.net()
    system.add(rows[2])
    assert system.drop_last()
    after = system.net()
    assert torch.equal(before.keys, after.keys)
    assert torch.equal(before.values, after.values)


def test_more_rows_than_inputs_are_written_as_one_matrix() -> None:
    rows, system = edits(12), GrowingSystem("w", OPTIONS, text())
    for one in rows:
        system.add(one)
    net = system.net()
    assert net.unit_keys == IN  # 84 rows
    for transposed in (False, True):
        weight = torch.randn(OUT, IN)
        base = weight.T.contiguous() if transposed else weight
        written = base.clone()
        net.write(written, transposed)
        change = written - base
        assert close((change.T if transposed else change).double(), matrix(net))


def test_the_rows_of_the_solution_stop_growing() -> None:
    n, system = 2, GrowingSystem("w", OPTIONS, text())
    for one in edits(60, n):
        system.add(one)
        assert len(system.net().keys) <= IN + IN // 2 + n
    assert system.net().unit_keys == IN
    assert len(system.net().keys) <= IN + IN // 4
    assert system.drop_last()  # so undoing the last edit still solves nothing again


def test_the_bound_of_the_largest_change_holds_for_added_up_edits() -> None:
    system = GrowingSystem("w", OPTIONS, text())
    for one in edits(12):
        system.add(one)
    net = system.net()
    without = LowRankUpdate(net.keys, net.values, net.request)
    assert net.unit_keys
    assert torch.isclose(net.largest_possible(), without.largest_possible())


def test_settled_edits_stay_when_the_others_are_solved_again() -> None:
    rows, system = edits(9), GrowingSystem("w", OPTIONS, text())
    for one in rows:
        system.add(one)
    system.settle(rows[:4])
    assert close(matrix(system.net()), expected(rows, text()))
    system.restart()
    system.add(rows[8])
    assert close(matrix(system.net()), expected([*rows[:4], rows[8]], text()))


def test_rows_are_kept_in_half_precision() -> None:
    x = torch.randn(5, IN) * torch.tensor([[1e-6], [1.0], [1e5], [3.0], [0.0]])
    kept = SolveRows.of(x, torch.randn(5, OUT), torch.zeros(5).bool(), torch.zeros(5).long())
    assert kept.x.dtype == torch.float16
    back, _ = kept.rows(LABEL_WEIGHT)
    assert ((back - x).abs().amax(1) <= 2**-11 * x.abs().amax(1)).all()


def test_rows_that_are_not_finite_are_refused() -> None:
    [rows] = edits(1)
    rows.d_size[0] = float("nan")
    rows.x_size[1] = float("inf")
    system = GrowingSystem("w", OPTIONS, text())
    with pytest.raises(UpdateError, match="the system of w cannot be solved"):
        system.add(rows)
