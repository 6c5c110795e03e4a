"""The flat parts that ZeRO-3 makes of a weight, without DeepSpeed: the blocks of a weight that each
process stores, wherever its part begins and ends, and its padding."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from easyedit_mend_parallel.weights.partitions import flat_part, flat_range
from easyedit_mend_parallel.weights.stored import flat_blocks
from easyedit_mend_parallel.weights.update import LowRankUpdate


def partitioned(whole: Tensor, rank: int, world: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A parameter as DeepSpeed leaves it in the process `rank` of `world`."""
    monkeypatch.setattr(dist, "get_rank", lambda _group: rank)
    size = -(-whole.numel() // world)
    padded = torch.cat([whole.flatten(), torch.full((size * world - whole.numel(),), torch.nan)])
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_id, parameter.ds_shape, parameter.ds_numel = 0, whole.shape, whole.numel()
    parameter.ds_process_group = None
    parameter.ds_tensor = padded[size * rank : size * (rank + 1)].clone()
    parameter.ds_tensor.ds_numel = size
    return parameter


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (1, 11), (11, 1), (3, 3)])
def test_blocks_are_those_positions_of_the_flattened_weight(rows: int, columns: int) -> None:
    whole = torch.arange(rows * columns)
    for start, stop in itertools.combinations_with_replacement(range(len(whole) + 1), 2):
        stored, seen = whole[start:stop], []
        blocks = flat_blocks(start, stop, columns)
        assert len(blocks) <= 3
        for block in blocks:
            part = block.of(stored)
            assert torch.equal(part, whole.view(rows, columns)[block.rows, block.columns])
            assert part.data_ptr() == stored[block.start :].data_ptr()
            seen += part.flatten().tolist()
        assert seen == stored.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_parts_of_an_update_are_the_update(
    world: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(5, 7, generator=generator)
    inputs, outputs = (5, 7) if transposed else (7, 5)
    keys, values = (torch.randn(3, n, generator=generator) for n in (inputs, outputs))
    update = LowRankUpdate(keys, values, torch.zeros(3, dtype=torch.long))
    expected = whole.clone()
    update.write(expected, transposed)
    found = []
    for rank in range(world):
        parameter = partitioned(whole, rank, world, monkeypatch)
        stored = flat_part(parameter)
        for block in flat_blocks(*flat_range(parameter), 7):
            mine = update.of_part(block.rows, block.columns, transposed)
            mine.write(block.of(stored), transposed)
        assert parameter.ds_tensor[len(stored) :].isnan().all()  # the padding
        found.append(stored)
    torch.testing.assert_close(torch.cat(found).view_as(expected), expected)
