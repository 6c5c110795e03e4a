"""The memory of a copy that nobody sees any longer serves the layer's next copy."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from edited import FACTS, editor_of
from offloads import offloaded
from torch import nn
from toys import assert_unchanged, same_bits, toy_model, weights

from easyedit_mend_parallel import MendParallel, rollback_all
from easyedit_mend_parallel.weights.stores import memory
from easyedit_mend_parallel.weights.stores.memory import free_spare_memory, room_for


def waiting(editor: MendParallel) -> int:
    """For how many targets memory waits."""
    return sum(target.layer(editor.model) in memory._spare for target in editor.targets)


def other_weights(editor: MendParallel) -> None:
    """Gives every target other values."""
    with torch.no_grad():
        for target in editor.targets:
            weight = target.layer(editor.model).weight
            weight.add_(torch.rand(weight.shape, dtype=weight.dtype))


def test_memory_that_nobody_sees_is_used_again() -> None:
    layer = nn.Linear(40, 30)
    first = room_for(layer, layer.weight)
    address = first.data_ptr()

    del first

    assert room_for(layer, layer.weight).data_ptr() == address


@pytest.mark.parametrize("hold", ["the tensor", "a view of it"])
def test_memory_that_somebody_sees_is_not(hold: str) -> None:
    layer = nn.Linear(40, 30)
    first = room_for(layer, layer.weight).fill_(7)
    if hold == "a view of it":
        first = first[3]

    second = room_for(layer, layer.weight).fill_(8)

    assert second.data_ptr() != first.data_ptr()
    assert (first == 7).all()


def test_memory_of_another_size_is_let_go() -> None:
    layer = nn.Linear(40, 30)
    room_for(layer, layer.weight)
    assert memory._spare[layer].numel() == layer.weight.nbytes
    layer.double()

    room = room_for(layer, layer.weight)

    assert (room.dtype, room.shape) == (torch.float64, layer.weight.shape)


def test_an_edit_backs_up_into_the_memory_of_one_that_was_undone() -> None:
    editor = editor_of(toy_model("llama"))
    before = weights(editor.model)
    first = editor.edit(FACTS[0])
    address = {name: bits.data_ptr() for name, bits in first.entry.before().items()}

    first.rollback()

    assert waiting(editor) == len(editor.targets)
    second = editor.edit(FACTS[1])
    assert {name: bits.data_ptr() for name, bits in second.entry.before().items()} == address
    second.rollback()
    assert_unchanged(editor.model, before)


def test_bits_that_somebody_was_given_are_never_written_over() -> None:
    editor = editor_of(toy_model("llama"))
    before = weights(editor.model)
    result = editor.edit(FACTS[0])
    given = result.entry.before()
    result.rollback()
    other_weights(editor)

    editor.edit(FACTS[1])

    for name, bits in given.items():
        assert same_bits(bits, before[name])


def test_undoing_everything_frees_the_memory() -> None:
    editor = editor_of(toy_model("llama"))
    editor.edit(FACTS[0]).rollback()
    assert waiting(editor)

    rollback_all(editor.model)

    assert not waiting(editor)


def test_a_layer_that_is_gone_leaves_no_memory_behind() -> None:
    gc.collect()
    before = len(memory._spare)
    layer = nn.Linear(40, 30)
    room = room_for(layer, layer.weight)
    room_for(layer, layer.weight)
    assert len(memory._spare) == before + 1

    del layer, room

    assert len(memory._spare) == before


def test_only_the_layers_of_the_model_are_freed() -> None:
    mine, other = nn.Linear(40, 30), nn.Linear(40, 30)
    for layer in (mine, other):
        room_for(layer, layer.weight)

    free_spare_memory(nn.Sequential(mine))

    assert mine not in memory._spare
    assert other in memory._spare


def test_no_memory_waits_for_weights_that_may_not_stay_in_memory(tmp_path: Path) -> None:
    for limit, expected in ((None, True), (0, False)):
        model = offloaded(toy_model("llama"), "targets-safetensors", tmp_path / str(limit), "cpu")
        editor = editor_of(model, overlay_limit=limit)
        editor.edit(FACTS[0]).rollback()

        assert bool(waiting(editor)) is expected
