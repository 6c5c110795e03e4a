"""An edit by the package is the edit that MEND's formula gives, for every option of the network,
every kind of layer and every family; the formula is written down a second time in oracle.py."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracle import Oracle, OracleSum, assert_same_edit, oracle_edit, welford
from toys import (
    FAMILIES,
    OBSERVED,
    REQUEST,
    REQUESTS,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.target import find_targets

SIDES: dict[str, dict[str, Any]] = {
    "combine": {},
    "both-alone": {"combine": False},
    "one-sided": {"combine": False, "one_sided": True},
    "x-only": {"combine": False, "x_only": True},
    "delta-only": {"combine": False, "delta_only": True},
}


@functools.cache
def _cached(family: str) -> Any:
    return toy_model(family)


def fresh(family: str) -> Any:
    return copy.deepcopy(_cached(family))


def compare(
    model: Any,
    network: Hypernetwork,
    names: Sequence[str],
    tokenizer: Any,
    requests: Sequence[dict[str, str]] = (REQUEST,),
    **aggregate: str,
) -> list[dict[str, Oracle]]:
    """Edit `model` with the package and hold each weight against the oracle's."""
    state, options = network.state_dict(), dataclasses.asdict(network.config)
    oracles = [oracle_edit(model, tokenizer, r, names, state, options) for r in requests]
    before = weights(model)

    editor = MendParallel(model, tokenizer, toy_hparams(names, **aggregate), network=network)
    editor.edit(list(requests))

    after = weights(model)
    for name in names:
        exact = OracleSum.of([oracle[name] for oracle in oracles])
        assert_same_edit(after[name], exact.after, before[name], exact.largest)
    for name in set(before) - set(names):
        assert torch.equal(after[name], before[name]), f"{name} is no target and was changed"
    return oracles


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("shared", "norm", "init"),
    list(itertools.product((True, False), (True, False), ("id", "xavier"))),
)
def test_every_form_of_the_network_gives_the_edit_of_the_formula(
    family: str, sides: str, shared: bool, norm: bool, init: str
) -> None:
    model = fresh(family)
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    options = SIDES[sides] | {"shared": shared, "norm": norm, "init": init}
    network = toy_network(model, tokenizer, **options)

    compare(model, network, names, tokenizer)


@pytest.mark.parametrize("sides", ["combine", "both-alone"])
@pytest.mark.parametrize("n_hidden", [0, 1, 2])
@pytest.mark.parametrize("rank", [1, 20, 1920], ids=["rank-1", "between-widths", "beyond-width"])
def test_every_depth_and_rank_gives_the_edit_of_the_formula(
    sides: str, n_hidden: int, rank: int
) -> None:
    model = fresh("llama")  # widths 16 and 24, 40 together
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    network = toy_network(model, tokenizer, n_hidden=n_hidden, rank=rank, **SIDES[sides])

    compare(model, network, names, tokenizer)

    widest = max(p.shape[0] for n, p in network.named_parameters() if n.endswith(".v"))
    assert widest == min(rank, 40 if sides == "combine" else 24)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sides", ["combine", "one-sided"])
def test_every_family_gives_the_edit_of_the_formula(family: str, sides: str) -> None:
    model = fresh(family)
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    if family == "t5":
        assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}

    compare(model, toy_network(model, tokenizer, **SIDES[sides]), names, tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_sum_is_that_of_the_formula_over_the_requests_of_a_batch(family: str) -> None:
    model = fresh(family)
    tokenizer, names = tokenizer_for(model), toy_targets(model)

    compare(model, toy_network(model, tokenizer), names, tokenizer, REQUESTS, aggregate="sum")


def test_square_weights_of_attention_are_edited_by_the_formula() -> None:
    model = fresh("llama")  # one_sided has to choose where both sides are 16 wide
    names = ["model.layers.5.self_attn.q_proj.weight", "model.layers.4.self_attn.o_proj.weight"]
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, names, combine=False, one_sided=True)

    compare(model, network, names, tokenizer)


@pytest.mark.parametrize("lr_scale", [0.25, 3.0, -1.0])
def test_lr_scale_multiplies_the_learned_rates(lr_scale: float) -> None:
    model = fresh("llama")
    tokenizer, names = tokenizer_for(model), toy_targets(model)

    compare(model, toy_network(model, tokenizer, lr_scale=lr_scale), names, tokenizer)


@pytest.mark.parametrize("shared", [True, False])
def test_rates_and_modes_follow_the_order_of_inner_params(shared: bool) -> None:
    model = fresh("llama")
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    shuffled = [names[place] for place in (7, 2, 5, 0, 8, 3, 1, 6, 4)]

    compare(model, toy_network(model, tokenizer, shuffled, shared=shared), shuffled, tokenizer)


def test_labels_are_the_target_tokenized_alone_where_bos_is_prepended() -> None:
    model = fresh("llama")
    tokenizer, names = toy_tokenizer(bos=True), toy_targets(model)
    network = toy_network(model, tokenizer)

    compare(model, network, names, tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {"one_sided": True, "x_only": True},
        {"one_sided": True, "delta_only": True},
        {"x_only": True, "delta_only": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_that_clash_are_resolved_as_in_easyedit(options: dict[str, Any]) -> None:
    model = fresh("llama")
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    network = toy_network(model, tokenizer, combine=False, **options)

    compare(model, network, names, tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_new_network_adds_its_rate_times_the_true_gradient(family: str) -> None:
    model = fresh(family)
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    options = toy_hparams(names, norm=False, edit_lr=0.5).network_config()
    network = Hypernetwork(find_targets(model, names), options)

    oracles = compare(model, network, names, tokenizer)

    for oracle in oracles[0].values():
        torch.testing.assert_close(oracle.change, 0.5 * oracle.gradient)


@pytest.mark.parametrize("shared", [True, False])
def test_statistics_are_what_welfords_update_gives_row_by_row(shared: bool) -> None:
    model = fresh("llama")
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, shared=shared)  # observed the requests of OBSERVED
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for request in OBSERVED:
        rows, _ = capture(
            model, network.targets, make_batch(model, tokenizer, as_requests(request))
        )
        for target in network.targets:
            part = rows[target.name]
            key = str(target.shape) if shared else target.name.replace(".", "#")
            kept = zip(part.x[part.live].double(), part.delta[part.live].double(), strict=True)
            seen.setdefault(key, []).extend(kept)

    state = network.state_dict()
    assert len(seen) == (2 if shared else 9)
    for key, pairs in seen.items():
        assert state[f"mend.{key}.k"].item() == len(pairs)
        for letter, column in (("u", 0), ("v", 1)):
            mean, deviations, std = welford([pair[column] for pair in pairs])
            scale = std.max().item()
            for name, expected, unit in (
                ("mean", mean, scale),
                ("s", deviations, scale**2 * len(pairs)),
                ("std", std, scale),
            ):
                apart = (state[f"mend.{key}.{letter}_{name}"].double() - expected).abs().max()
                assert apart <= 1e-5 * unit, f"{key} {letter}_{name}"
