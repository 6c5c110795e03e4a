"""A batch's one update over simulated accelerators: each request finds its own edit in it, on every
placement the update is that of one device, and each system is solved where its target computes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import toys
from accelerate import dispatch_model
from placements import PLACEMENTS, device_map
from test_aggregate import BATCH, EXACT, apart_from_own_edits, assert_same_change
from toys import (
    assert_unchanged,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.method.least_squares import System

TWO_DEVICES = ("llama-cut-at-5", "gpt2-cut-at-4", "mistral-cut-at-5", "gptj-cut-at-5")
"""Cuts that run through the edited blocks."""


def spread(model: Any, placement: str) -> Any:
    _, blocks, head = PLACEMENTS[placement]
    return dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")


def editors(placement: str, side: str = "right", **values: Any) -> tuple[MendParallel, ...]:
    """(on one device, spread): editors of one model with one network."""
    plain = toy_model(PLACEMENTS[placement][0])
    names, tokenizer = toy_targets(plain), toy_tokenizer(side=side)
    network = toy_network(plain, tokenizer, names)
    model = spread(copy.deepcopy(plain), placement)
    hparams = toy_hparams(names, aggregate="least_squares", **values)
    home = model.get_parameter(names[-1]).device
    return (
        MendParallel(plain, tokenizer, hparams, network=network),
        MendParallel(model, tokenizer, hparams, network=copy.deepcopy(network).to(home)),
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("placement", TWO_DEVICES)
def test_each_request_finds_exactly_its_own_edit_over_two_devices(
    placement: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "WIDTH", 40)
    monkeypatch.setattr(toys, "INNER", 48)
    _, editor = editors(placement, side, aggregate_options=EXACT)
    _, wrong = editors(placement, side, aggregate_options={**EXACT, "keys_from": "unedited"})

    assert apart_from_own_edits(editor) < 1e-3
    assert apart_from_own_edits(wrong) > 0.05


@pytest.mark.parametrize(
    "placement", [*TWO_DEVICES[:2], "llama-head-back", "mistral-zigzag", "gptj-three-devices"]
)
def test_a_batch_on_any_placement_has_the_update_of_one_device(placement: str) -> None:
    one_device, spread_out = editors(placement)
    before = weights(spread_out.model)

    expected = one_device.edit(BATCH)
    result = spread_out.edit(BATCH)

    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, update in result.updates.items():
        assert update.keys.device == before[name].device
        assert_same_change(update, expected.updates[name], 1e-2)
    result.rollback()
    assert_unchanged(spread_out.model, before)


def test_every_system_is_solved_where_its_target_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    add, seen = System.add, {}

    def watched(self: System, x: Any, d: Any, request: Any, *masks: Any) -> None:
        assert x.device == d.device == request.device
        seen[self._target.name] = x.device
        add(self, x, d, request, *masks)

    monkeypatch.setattr(System, "add", watched)
    _, editor = editors(TWO_DEVICES[0])

    editor.edit(BATCH)

    assert {str(device) for device in seen.values()} == {"sim:0", "sim:1"}
    for name, device in seen.items():
        assert device == editor.model.get_parameter(name).device
        assert isinstance(device, torch.device)
