"""The least-squares system of one target has the solution of the formula in either form, and what
cannot be solved is said or refused by the target's name.
"""

from __future__ import annotations

import logging

import pytest
import torch
from test_aggregate import assert_same_change, dense
from torch import Tensor

from easyedit_mend_parallel import UpdateError
from easyedit_mend_parallel.method.least_squares import OF_ALL, Aggregate, PreservedRows, System
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate


def rows(n: int, width: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, d = (torch.randn(n, size, generator=generator) for size in (width, out))
    return x, d, torch.arange(n)


def solved(
    by_rows: bool, options: Aggregate, held: PreservedRows | None, n: int = 7
) -> LowRankUpdate:
    system = System(Target("w", 12, 5), by_rows, options, held)
    x, d, request = rows(n, 12, 5)
    label_mask, after = request % 3 == 2, request % 4 == 3
    system.add(x[:3], d[:3], request[:3], label_mask[:3], after[:3])
    system.add(x[3:], d[3:], request[3:], label_mask[3:], after[3:])
    return system.solved()


@pytest.mark.parametrize("n", [7, 30])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("by_rows", [False, True])
def test_a_system_has_the_least_squares_solution(by_rows: bool, held: bool, n: int) -> None:
    x, d, request = rows(n, 12, 5)
    still = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    options = Aggregate(
        ridge=0.01, preserved_text_weight=0.3, label_weight=4.0, continuation_weight=9.0
    )
    mean = x.double().square().sum(1).mean()
    root = torch.where(request % 3 == 2, 2.0, 1.0) * torch.where(request % 4 == 3, 3.0, 1.0)
    root = root.double().unsqueeze(1)
    left = [root * x.double(), (0.01 * mean).sqrt() * torch.eye(12).double()]
    right = [root * d.double(), torch.zeros(12, 5).double()]
    if held:
        left.append(0.3**0.5 * still.double())
        right.append(torch.zeros(4, 5).double())
    expected = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution.T

    update = solved(by_rows, options, PreservedRows(4, still) if held else None, n)

    assert (dense(update) - expected).abs().max() <= 1e-5 * expected.abs().max()
    if by_rows:
        assert update.request.tolist() == list(range(n))
        torch.testing.assert_close(update.values, (root * d).float())
    else:
        assert set(update.request.tolist()) == {OF_ALL}
        assert len(update.keys) == 12


def test_held_rows_and_their_gram_matrix_are_the_same() -> None:
    still = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    gram = PreservedRows(30, None, still.double().T @ still.double())
    options = Aggregate(preserved_text_weight=0.3)

    assert_same_change(
        solved(False, options, gram), solved(True, options, PreservedRows(30, still)), 1e-5
    )


@pytest.mark.parametrize("by_rows", [False, True])
def test_rows_that_repeat_each_other_raise_the_ridge_and_say_so(
    by_rows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    system = System(Target("layer.w", 12, 5), by_rows, Aggregate(ridge=0), None)
    x, d, request = rows(3, 12, 5)
    system.add(x[[0, 0, 1]], d, request, request < 0, request < 0)

    with caplog.at_level(logging.WARNING):
        update = system.solved()

    assert "layer.w: rows of the batch repeat each other" in caplog.text
    assert torch.isfinite(dense(update)).all()
    # Two that want different things of one input get the mean of both.
    wanted = (d[0] + d[1]) / 2
    torch.testing.assert_close(dense(update).float() @ x[0], wanted, rtol=1e-3, atol=1e-3)


def test_inputs_that_are_not_finite_are_refused_by_name() -> None:
    system = System(Target("layer.w", 12, 5), True, Aggregate(), None)
    x, d, request = rows(3, 12, 5)
    x[1, 4] = torch.nan
    system.add(x, d, request, request < 0, request < 0)

    with pytest.raises(UpdateError, match=r"inputs of layer\.w are not finite"):
        system.solved()
