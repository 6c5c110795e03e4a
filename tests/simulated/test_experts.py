"""Experts of a mixture that is spread over simulated accelerators are edited like on one device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from oracle import assert_same_edit
from toy_experts import BLOCKS, MIXTURES, mixture_hparams, stacks, toy_mixture
from toys import (
    REQUESTS,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_network,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.weights.offload import kept_weight

SPREADS: dict[str, tuple[Any, ...]] = {
    "one": ("sim:0",) * BLOCKS,
    "cut": ("sim:0", "sim:0", "sim:0", "sim:1"),
    "zigzag": ("sim:0", "sim:1", "sim:0", "sim:1"),
    "to-ram": ("sim:0", "sim:0", "cpu", "sim:1"),
}
"""{name: the place of each block}; a block on the CPU computes on the first accelerator."""


def spread(model: Any, name: str) -> Any:
    model.set_experts_implementation("eager")  # the simulated accelerators have no torch.histc
    vars(model)["_addresses"] = [parameter.detach() for parameter in model.parameters()]
    ends = {"model.embed_tokens": "sim:0", "model.rotary_emb": "sim:0"}
    ends |= {"model.norm": "sim:1", "lm_head": "sim:1"}
    blocks = {f"model.layers.{number}": place for number, place in enumerate(SPREADS[name])}
    return dispatch_model(model, ends | blocks, main_device="sim:0", force_hooks=True)


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize("family", MIXTURES)
def test_an_edit_of_spread_experts_equals_that_on_one_device(
    family: str, name: str, apply: str
) -> None:
    one = toy_mixture(family)
    names, tokenizer, before = stacks(one), tokenizer_for(one), weights(one)
    network = toy_network(one, tokenizer, names)
    expected = MendParallel(
        one, tokenizer, toy_hparams(names), network=copy.deepcopy(network)
    ).edit(REQUESTS)
    other = spread(toy_mixture(family), name)
    editor = MendParallel(
        other, tokenizer, toy_hparams(names, apply=apply), network=network.to("sim:1")
    )

    result = editor.edit(REQUESTS)

    assert result.unreached == expected.unreached
    for target in editor.targets:
        update = expected.updates[target.name]
        mine = result.updates[target.name]
        assert mine.keys.device == result.placements[target.name].device
        change = (update.values.T @ update.keys).double()
        found = (mine.values.cpu().T @ mine.keys.cpu()).double()
        torch.testing.assert_close(found, change, rtol=0, atol=1e-5 * float(change.abs().max()))
    result.rollback()
    for parameter, weight in before.items():
        kept = kept_weight(other, parameter)
        assert kept is not None
        assert same_bits(kept.cpu(), weight)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_written_edit_of_spread_experts_is_that_of_one_device(family: str) -> None:
    one, other = toy_mixture(family), spread(toy_mixture(family), "cut")
    names, tokenizer, before = stacks(one), tokenizer_for(one), weights(one)
    network = toy_network(one, tokenizer, names)
    hparams = toy_hparams(names)
    MendParallel(one, tokenizer, hparams, network=copy.deepcopy(network)).edit(REQUESTS[0])

    result = MendParallel(other, tokenizer, hparams, network=network.to("sim:1")).edit(REQUESTS[0])

    for name in names:
        now = other.get_parameter(name).detach().cpu()
        assert_same_edit(now, one.get_parameter(name).detach(), before[name])
    result.rollback()
    for name, weight in before.items():
        assert same_bits(other.get_parameter(name).detach().cpu(), weight)


def test_spread_experts_give_the_target_of_an_untrained_edit() -> None:
    model = spread(toy_mixture("mixtral"), "cut")
    hparams = mixture_hparams(stacks(model, last=1))

    result = MendParallel(model, tokenizer_for(model), hparams).edit(REQUESTS[1])

    assert [verdict.holds for verdict in result.verify()] == [True]
