"""A backup's memory serves the layer's next backup, and never while somebody may still read it."""

from __future__ import annotations

from typing import Any

import torch
from edited import FACTS, editor_of
from torch import Tensor
from toys import assert_unchanged, same_bits, toy_model, weights

from easyedit_mend_parallel import MendParallel, rollback_all
from easyedit_mend_parallel.stores.backups import Backup


def backup_addresses(editor: MendParallel) -> list[int]:
    """Where the last change's backups lie, without asking for them as somebody who keeps them."""
    record = editor.edit(FACTS[0]).entry._record
    found: list[Any] = list(record.staged.values())
    return [staged._backup.bits.data_ptr() for staged in found]


def waiting(editor: MendParallel) -> int:
    layers = (target.layer(editor.model) for target in editor.targets)
    return sum(layer in Backup._spare for layer in layers)


def test_the_next_edit_backs_up_into_the_memory_of_one_that_was_undone() -> None:
    editor = editor_of(toy_model("llama"))
    before = weights(editor.model)
    first = editor.edit(FACTS[0])
    staged: list[Any] = list(first.entry._record.staged.values())
    addresses = [one._backup.bits.data_ptr() for one in staged]

    first.rollback()

    assert waiting(editor) == len(editor.targets)
    assert backup_addresses(editor) == addresses
    rollback_all(editor.model)
    assert_unchanged(editor.model, before)


def other_weights(editor: MendParallel) -> None:
    """Gives every target values that no smaller dtype holds."""
    with torch.no_grad():
        for target in editor.targets:
            weight = target.layer(editor.model).weight
            weight.add_(torch.rand(weight.shape, dtype=weight.dtype))


def test_bits_that_somebody_was_given_are_never_written_over() -> None:
    editor = editor_of(toy_model("llama"))
    before = weights(editor.model)
    result = editor.edit(FACTS[0])
    given: dict[str, Tensor] = result.entry.before()
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


def test_memory_of_another_dtype_is_not_used() -> None:
    editor = editor_of(toy_model("llama"))
    editor.edit(FACTS[0]).rollback()
    editor.model.double()
    other_weights(editor)
    before = weights(editor.model)

    editor.edit(FACTS[0]).rollback()

    assert_unchanged(editor.model, before)


def test_a_model_that_is_gone_leaves_no_memory_behind() -> None:
    editor = editor_of(toy_model("llama"))
    editor.edit(FACTS[0]).rollback()
    kept = len(Backup._spare)
    assert kept >= len(editor.targets)

    n = len(editor.targets)
    del editor

    assert len(Backup._spare) == kept - n
