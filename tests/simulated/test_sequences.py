"""Edits solved together over simulated accelerators and offloaded weights: the update is that of
one device, any edit can be undone, and the last and all are undone to the bit.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from accelerate import dispatch_model
from offloads import KINDS, all_stored, offloaded
from placements import PLACEMENTS, device_map
from test_sequence import FACTS
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets

from easyedit_mend_parallel import MendParallel

SPREAD = ("llama-cut-at-5", "gpt2-cut-at-4", "mistral-zigzag", "gptj-three-devices")
BOUND = 1e-2
"""Of the largest change: a system with a small ridge enlarges the rounding of forward passes."""


def spread(model: Any, placement: str) -> Any:
    _, blocks, head = PLACEMENTS[placement]
    return dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")


def editors(
    plain: Any, model: Any, apply: str = "weight", continuation_weight: float = 0
) -> list[MendParallel]:
    names, tokenizer = toy_targets(plain), tokenizer_for(plain)
    network = toy_network(plain, tokenizer, names)
    options = {"preserved_text_weight": 0, "continuation_weight": continuation_weight}
    hparams = toy_hparams(names, aggregate="least_squares", aggregate_options=options, apply=apply)
    return [
        MendParallel(one, tokenizer, hparams, network=copy.deepcopy(network).to(home))
        for one, home in ((plain, "cpu"), (model, "sim:0"))
    ]


def assert_sequences_agree(plain: MendParallel, other: MendParallel) -> None:
    """Four edits, an undo of the last and of one in the middle, and an undo of all."""
    names = [target.name for target in plain.targets]
    base, held = all_stored(plain.model, names), all_stored(other.model, names)
    results = []
    for fact in FACTS[:4]:
        before = all_stored(other.model, names)
        results.append((plain.edit(fact), other.edit(fact)))
    assert_same_change(plain, other, base)

    results[3][1].rollback()
    assert all(same_bits(all_stored(other.model, names)[name], before[name]) for name in names)
    results[3][0].rollback()
    for result in results[1]:
        result.rollback()
    assert_same_change(plain, other, base)
    assert [verdict.request.prompt for verdict in other.verify()] == [
        FACTS[n]["prompt"] for n in (0, 2)
    ]

    other.rollback_all()
    assert all(same_bits(all_stored(other.model, names)[name], held[name]) for name in names)


def assert_same_change(plain: MendParallel, other: MendParallel, base: dict[str, Any]) -> None:
    names = list(base)
    expected, found = all_stored(plain.model, names), all_stored(other.model, names)
    for name in names:
        largest = (expected[name] - base[name]).abs().max()
        assert largest > 0
        assert (found[name] - expected[name]).abs().max() <= BOUND * largest


@pytest.mark.parametrize("placement", SPREAD)
def test_a_sequence_on_any_placement_has_the_update_of_one_device(placement: str) -> None:
    plain = toy_model(PLACEMENTS[placement][0])
    assert_sequences_agree(*editors(plain, spread(copy.deepcopy(plain), placement)))


@pytest.mark.parametrize("placement", SPREAD[:2])
def test_so_has_one_that_leaves_the_text_after_its_targets(placement: str) -> None:
    plain = toy_model(PLACEMENTS[placement][0])
    model = spread(copy.deepcopy(plain), placement)
    assert_sequences_agree(*editors(plain, model, continuation_weight=10))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_offloaded_weights_has_the_update_of_one_device(
    kind: str, tmp_path: Path
) -> None:
    plain = toy_model("llama")
    model = offloaded(copy.deepcopy(plain), kind, tmp_path, 0)
    assert_sequences_agree(*editors(plain, model))
