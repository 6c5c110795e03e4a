"""Experts of a mixture are edited like other weights: slices of a stack and layers of their own."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from oracle import assert_same_edit, oracle_edit
from torch import nn
from toy_experts import (
    MIXTURES,
    listed,
    listed_name,
    mixture_hparams,
    stacks,
    toy_mixture,
)
from toys import (
    NETWORK_FIELDS,
    REQUEST,
    REQUESTS,
    WIDTH,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.errors import PlacementError, TargetError, UpdateError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture, layer_rows
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.offload import kept_weight
from easyedit_mend_parallel.weights.routed import ROUTED
from easyedit_mend_parallel.weights.target import find_targets


def answers(model: Any, request: Any) -> bool:
    """Whether the model gives the request's target."""
    tokenizer = tokenizer_for(model)
    batch = make_batch(model, tokenizer, as_requests(request))
    with torch.no_grad():
        return bool(batch.answered(model).all())


def edited(model: Any, names: list[str], asked: Any, **options: Any) -> Any:
    """The result of an edit by a toy network."""
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, [one.name for one in find_targets(model, names)])
    return MendParallel(model, tokenizer, toy_hparams(names, **options), network=network).edit(
        asked
    )


def untrained(model: Any, names: list[str], asked: Any) -> Any:
    """The result of an edit without a trained network."""
    return MendParallel(model, tokenizer_for(model), mixture_hparams(names)).edit(asked)


def logits(model: Any) -> torch.Tensor:
    ids = tokenizer_for(model)("who wrote the old river", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def assert_left_alone(model: Any) -> None:
    """Nothing of a watch is left in the model."""
    assert not [name for name, module in model.named_modules() if hasattr(module, ROUTED)]
    assert not [module for module in model.modules() if len(module._forward_hooks)]
    assert not [module for module in model.modules() if len(module._forward_pre_hooks)]
    configs = {id(one.config) for one in model.modules() if hasattr(one, "config")}
    assert configs == {id(model.config)}


@pytest.mark.parametrize("family", MIXTURES)
def test_the_sum_over_an_experts_rows_is_the_gradient_of_its_weight(family: str) -> None:
    model = toy_mixture(family)
    targets = find_targets(model, stacks(model))
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))

    rows, _ = capture(model, targets, batch)

    assert_left_alone(model)
    model.set_experts_implementation("eager")
    reached = 0
    for request in range(len(REQUESTS)):
        model.zero_grad()
        batch.losses_on(model)[request].backward()
        for target in targets:
            mine = rows[target.name].request == request
            found = rows[target.name].delta[mine].T @ rows[target.name].x[mine]
            stack = target.parameter(model).grad
            true = target.part_of(stack)
            torch.testing.assert_close(
                found.T if target.transposed else found,
                true,
                rtol=0,
                atol=1e-6 * float(stack.abs().max()),
            )
            reached += bool(true.any())
    assert reached > 2 * len(targets)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_rows_of_an_expert_are_the_tokens_that_the_router_sends_it(family: str) -> None:
    model = toy_mixture(family)
    targets = find_targets(model, stacks(model, last=1))
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
    experts = targets[0].layer(model)
    chosen: list[torch.Tensor] = []
    handle = experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1]))

    rows, _ = capture(model, targets, batch)
    handle.remove()

    for target in targets:
        sent = (chosen[0] == target.expert).any(-1).nonzero().flatten()
        assert rows[target.name].token.sort().values.tolist() == sent.tolist()


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize("family", MIXTURES)
def test_an_edited_mixture_gives_the_target_and_is_undone_to_the_bit(
    family: str, apply: str
) -> None:
    model, asked = toy_mixture(family), REQUESTS[1]
    names = stacks(model, last=1)
    for name in names:
        model.get_parameter(name).data[:, 0, 0] = -0.0  # to which adding 0 is a change
    before, said = weights(model), logits(model)
    assert not answers(model, asked)
    editor = MendParallel(model, tokenizer_for(model), mixture_hparams(names, apply=apply))

    result = editor.edit(asked)

    assert answers(model, asked)
    touched = {name.rpartition("[")[0] for name in result.updates if name not in result.unreached}
    if apply == "weight":
        assert_unchanged(model, {name: w for name, w in before.items() if name not in touched})
        for name in result.unreached:
            stack, _, number = name.removesuffix("]").rpartition("[")
            now = model.get_parameter(stack)[int(number)]
            assert same_bits(now.detach(), before[stack][int(number)])
        assert not same_bits(model.get_parameter(min(touched)).detach(), before[min(touched)])
    else:
        assert_unchanged(model, before)
    result.rollback()
    assert_unchanged(model, before)
    assert_left_alone(model)
    assert torch.equal(logits(model), said)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_update_at_the_output_is_felt_like_a_written_one(family: str) -> None:
    found = []
    for apply in ("weight", "output"):
        model = toy_mixture(family)
        tokenizer, names = tokenizer_for(model), stacks(model)
        network = toy_network(model, tokenizer, names)
        hparams = toy_hparams(names, apply=apply)
        MendParallel(model, tokenizer, hparams, network=network).edit(REQUESTS)
        found.append(logits(model))

    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0], logits(toy_mixture(family)), atol=1e-2)


def test_an_edit_equals_that_of_the_oracle_on_experts_with_layers_of_their_own() -> None:
    stacked, apart = toy_mixture("mixtral"), listed(toy_mixture("mixtral"))
    tokenizer = tokenizer_for(stacked)
    network = toy_network(stacked, tokenizer, stacks(stacked))
    names = [target.name for target in network.targets]
    before = weights(stacked)

    result = MendParallel(stacked, tokenizer, toy_hparams(stacks(stacked)), network=network).edit(
        REQUEST
    )

    assert not result.unreached
    edits = oracle_edit(
        apart,
        tokenizer,
        REQUEST,
        [listed_name(name) for name in names],
        network.state_dict(),
        {**NETWORK_FIELDS, "lr_scale": 1.0},
    )
    for target in network.targets:
        after = target.part_of(target.parameter(stacked)).detach()
        own = target.part_of(before[target.parameter_name])
        assert_same_edit(after, edits[listed_name(target.name)].after, own)


def test_a_batch_is_the_sum_of_its_requests_own_edits() -> None:
    model = toy_mixture("qwen3_moe")
    tokenizer, names = tokenizer_for(model), stacks(model)
    network = toy_network(model, tokenizer, names)
    editor = MendParallel(model, tokenizer, toy_hparams(names), network=network)
    parts: dict[str, torch.Tensor] = {}
    for request in REQUESTS:
        one = editor.edit(request)
        one.rollback()
        for name, update in one.updates.items():
            parts[name] = parts.get(name, 0) + update.values.T @ update.keys

    together = editor.edit(REQUESTS)

    for name, update in together.updates.items():
        found = update.values.T @ update.keys
        torch.testing.assert_close(
            found, parts[name], rtol=1e-4, atol=1e-5 * float(found.abs().max())
        )


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_a_solved_sequence_is_undone_in_the_middle_and_at_the_end(apply: str) -> None:
    model = toy_mixture("olmoe")
    tokenizer, names = tokenizer_for(model), stacks(model)
    network = toy_network(model, tokenizer, names)
    hparams = toy_hparams(names, aggregate="least_squares", sequence="solve", apply=apply)
    before = weights(model)
    editor = MendParallel(model, tokenizer, hparams, network=network)
    results = [editor.edit(request) for request in REQUESTS]
    results[1].rollback()
    middle = logits(model)

    editor.rollback_all()
    assert_unchanged(model, before)
    for request in (REQUESTS[0], REQUESTS[2]):
        results.append(editor.edit(request))
    torch.testing.assert_close(logits(model), middle, rtol=1e-4, atol=1e-4)
    for result in results[3:]:
        result.rollback()

    assert_unchanged(model, before)
    assert_left_alone(model)


@pytest.mark.parametrize("aggregate", ["sum", "mean_loss", "least_squares"])
def test_batches_are_combined_in_every_way(aggregate: str) -> None:
    model = toy_mixture("deepseek_v3")
    tokenizer, names = tokenizer_for(model), stacks(model)
    network = toy_network(model, tokenizer, names)
    before = weights(model)
    hparams = toy_hparams(
        names, aggregate=aggregate, aggregate_options={"preserved_text_weight": 1.0}
    )

    result = MendParallel(model, tokenizer, hparams, network=network).edit(REQUESTS)

    assert not same_bits(model.get_parameter(names[0]).detach(), before[names[0]])
    result.rollback()
    assert_unchanged(model, before)


def test_the_user_hears_of_a_named_expert_that_no_token_reaches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = toy_mixture("qwen3_moe")
    stack = stacks(model, last=1)[0]
    every = edited(model, [stack], REQUESTS[1])
    every.rollback()
    assert every.unreached, "the toy model sends a token to every expert"
    unreached, reached = every.unreached[0], min(set(every.updates) - set(every.unreached))
    caplog.clear()

    result = edited(model, [reached, unreached], REQUESTS[1])

    assert result.unreached == [unreached]
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert any(unreached in one and reached not in one for one in said)
    before = weights(model)
    for ask in (edited, untrained):
        with pytest.raises(TargetError, match="no token of these requests is sent to"):
            ask(model, [unreached], REQUESTS[1])
        assert_unchanged(model, before)


def test_an_edit_of_one_expert_leaves_the_others_alone() -> None:
    model = toy_mixture("gpt_oss")
    stack = stacks(model, last=1)[1]
    before = weights(model)

    edited(model, [f"{stack}[1]"], REQUESTS)

    assert_unchanged(model, {name: weight for name, weight in before.items() if name != stack})
    changed = [
        number
        for number, (now, was) in enumerate(
            zip(model.get_parameter(stack).detach(), before[stack], strict=True)
        )
        if not same_bits(now, was)
    ]
    assert changed == [1]


def test_a_deep_copy_of_a_model_has_edits_of_its_own() -> None:
    model = toy_mixture("mixtral")
    names = stacks(model, last=1)
    hparams = mixture_hparams(names, apply="output")
    result = MendParallel(model, tokenizer_for(model), hparams).edit(REQUESTS[1])
    copied = copy.deepcopy(model)
    edited = logits(model)

    result.rollback()

    assert torch.equal(logits(copied), edited)
    assert not torch.allclose(logits(model), edited, atol=1e-3)
    assert_left_alone(model)


def test_experts_with_layers_of_their_own_are_edited_like_those_of_a_stack() -> None:
    stacked, apart = toy_mixture("mixtral"), listed(toy_mixture("mixtral"))
    tokenizer = tokenizer_for(stacked)
    targets = find_targets(stacked, stacks(stacked))
    names = [listed_name(target.name) for target in targets]
    batch = make_batch(stacked, tokenizer, as_requests(REQUESTS))

    one, _ = capture(stacked, targets, batch)
    other, _ = capture(apart, find_targets(apart, names), batch)
    seen = layer_rows(stacked, targets, batch), layer_rows(apart, find_targets(apart, names), batch)

    assert_left_alone(apart)
    for target, name in zip(targets, names, strict=True):
        assert torch.equal(one[target.name].token, other[name].token)
        assert torch.equal(one[target.name].request, other[name].request)
        torch.testing.assert_close(one[target.name].x, other[name].x)
        torch.testing.assert_close(one[target.name].delta, other[name].delta)
        torch.testing.assert_close(seen[0][target.name].y, seen[1][name].y)
        assert torch.equal(seen[0][target.name].label_mask, seen[1][name].label_mask)
    before = weights(apart)
    for apply in ("weight", "output"):
        hparams = mixture_hparams(names[-8:], apply=apply)
        result = MendParallel(apart, tokenizer, hparams).edit(REQUESTS[1])
        assert answers(apart, REQUESTS[1])
        result.rollback()
        assert_unchanged(apart, before)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_accelerate_offloads_to_ram_are_edited_there(family: str) -> None:
    resident = toy_mixture(family)
    before = weights(resident)
    edited(resident, stacks(resident), REQUESTS)
    model = toy_mixture(family)
    network = toy_network(model, tokenizer_for(model), stacks(model))
    vars(model)["_addresses"] = [parameter.detach() for parameter in model.parameters()]
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    hparams = toy_hparams(stacks(model))

    result = MendParallel(model, tokenizer_for(model), hparams, network=network).edit(REQUESTS)

    assert {one.kept for one in result.placements.values()} == {"ram"}
    torch.testing.assert_close(logits(model), logits(resident), rtol=1e-4, atol=1e-4)
    result.rollback()
    for name, weight in before.items():
        kept = kept_weight(model, name)
        assert kept is not None
        assert same_bits(kept, weight)


def test_experts_on_disk_are_edited_at_their_outputs_only(tmp_path: Path) -> None:
    resident = toy_mixture("mixtral")
    edited(resident, stacks(resident), REQUESTS)
    model = toy_mixture("mixtral")
    said = logits(model)
    network = toy_network(model, tokenizer_for(model), stacks(model))
    vars(model)["_addresses"] = [parameter.detach() for parameter in model.parameters()]
    device = torch.device("cpu")
    model = accelerate.disk_offload(model, str(tmp_path / "offload"), execution_device=device)
    tokenizer, names = tokenizer_for(model), stacks(model)

    with pytest.raises(PlacementError, match="one expert of a stack that lies on disk"):
        MendParallel(model, tokenizer, toy_hparams(names), network=network)

    hparams = toy_hparams(names, apply="output")
    result = MendParallel(model, tokenizer, hparams, network=network).edit(REQUESTS)
    torch.testing.assert_close(logits(model), logits(resident), rtol=1e-4, atol=1e-4)
    result.rollback()
    assert torch.equal(logits(model), said)
    untrained = mixture_hparams(stacks(model, last=1), apply="output")
    assert MendParallel(model, tokenizer, untrained).edit(REQUESTS[1]).norms


def test_experts_in_half_precision_are_undone_to_the_bit() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = toy_mixture("mixtral", dtype=dtype)
        before = weights(model)
        result = edited(model, stacks(model), REQUESTS)
        assert not same_bits(
            model.get_parameter(stacks(model)[0]).detach(), before[stacks(model)[0]]
        )
        result.rollback()
        assert_unchanged(model, before)


class AllAtOnce(nn.Module):
    """Experts that are all given every token, in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        return torch.bmm(rows.expand(2, *rows.shape), self.up).sum(0).view_as(x)


class OneByOne(nn.Module):
    """Experts that are stored in × out, which nothing but their product says."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        out = torch.zeros_like(rows)
        for number in range(2):
            token = torch.arange(number, len(rows), 2)
            out.index_add_(0, token, rows[token] @ self.up[number])
        return out.view_as(x)


@pytest.mark.parametrize(
    ("experts", "why"), [(AllAtOnce, "at a time"), (OneByOne, "the other way round")]
)
def test_experts_whose_products_cannot_be_taken_apart_are_refused(
    experts: type[nn.Module], why: str
) -> None:
    model = toy_model("llama")
    model.model.layers[4].mlp = experts()
    before = weights(model)
    names = ["model.layers.4.mlp.up"]

    with pytest.raises(TargetError, match=why):
        MendParallel(model, tokenizer_for(model), mixture_hparams(names)).edit(REQUESTS[1])

    assert_unchanged(model, before)
    assert_left_alone(model)


def test_experts_stored_in_x_out_are_edited_where_the_layer_says_so() -> None:
    model = toy_model("llama")
    model.model.layers[4].mlp = OneByOne()
    model.model.layers[4].mlp.is_transposed = True
    before = weights(model)

    result = edited(model, ["model.layers.4.mlp.up"], REQUESTS)

    stack = "model.layers.4.mlp.up"
    assert not torch.equal(model.get_parameter(stack), before[stack])
    result.rollback()
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.layers.3.mlp.experts.down_proj[4]", "name one of them"),
        ("model.layers.3.mlp.experts.sideways[1]", "is not in this model"),
        ("model.layers.3.self_attn.o_proj.weight[1]", "not the three of a stack"),
        ("model.layers.3.mlp.experts[1]", "is not in this model"),
    ],
)
def test_a_wrong_name_of_an_expert_is_refused_with_what_is_there(name: str, why: str) -> None:
    with pytest.raises(TargetError, match=why):
        find_targets(toy_mixture("mixtral"), [name])


def test_an_expert_is_named_once() -> None:
    model = toy_mixture("mixtral")
    stack = stacks(model)[0]

    with pytest.raises(TargetError, match="more than once"):
        find_targets(model, [stack, f"{stack}[1]"])


def test_scoped_edits_of_experts_are_refused() -> None:
    model = toy_mixture("mixtral")
    hparams = mixture_hparams(stacks(model, last=1), apply="scoped")

    with pytest.raises(UpdateError, match="scoped edits need a layer that sees every token"):
        MendParallel(model, tokenizer_for(model), hparams)


@pytest.mark.parametrize("of", ["expert_parallel", "plan"])
def test_experts_that_are_split_between_processes_are_refused(of: str) -> None:
    model = toy_mixture("mixtral")
    experts = model.model.layers[3].mlp.experts
    if of == "plan":
        experts._hf_tp_plan = "moe_tp_experts"
    else:
        experts._is_expert_parallel = True

    with pytest.raises(PlacementError, match="split between processes"):
        find_targets(model, stacks(model, last=1))
