"""Where a target computes and where its weight lies is found from the device map, accelerate's
hook and the weight itself, and where these contradict each other all three are named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_submodules,
)
from toys import (
    REQUEST,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, PlacementError
from easyedit_mend_parallel.weights.placement import (
    Placement,
    as_device,
    execution_hook,
    input_device,
    is_dispatched,
    mapped_place,
    place,
)
from easyedit_mend_parallel.weights.target import Target, find_target

CPU = torch.device("cpu")
UP = "model.layers.5.mlp.up_proj.weight"


def prepared() -> tuple[Any, Target]:
    model = toy_model("llama")
    return model, find_target(model, UP)


# --- a model that was never dispatched


def test_a_model_that_was_never_dispatched_computes_where_its_weights_lie() -> None:
    model, target = prepared()
    assert place(model, target) == Placement(CPU, "resident")
    assert mapped_place(model, UP) is None
    assert execution_hook(model, target.layer_name) is None
    assert input_device(model) == CPU
    assert not is_dispatched(model)


def test_a_weight_that_has_no_values_and_no_hook_is_refused() -> None:
    with torch.device("meta"):
        model = toy_model("llama")
    with pytest.raises(PlacementError, match=f"{UP}.* the weight itself is on meta"):
        place(model, find_target(model, UP))
    with pytest.raises(PlacementError, match=r"input embeddings \(model\.embed_tokens\)"):
        input_device(model)


# --- the device map


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("model.layers.1.mlp.up_proj.weight", 1),
        ("model.layers.11.mlp.up_proj.weight", 2),
        ("model.layers.11.mlp.down_proj.weight", "disk"),
        ("model.layers.111.mlp.up_proj.weight", 0),
        ("model.layers.1", 1),
        ("lm_head.weight", 3),
        ("lm_head.weight.extra", 3),
        ("lm_header.weight", 0),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_longest_prefix_of_whole_steps_counts(
    parameter: str, expected: int | str, backwards: bool
) -> None:
    model, _ = prepared()
    entries: list[tuple[str, int | str]] = [
        ("", 0),
        ("model.layers.1", 1),
        ("model.layers.11", 2),
        ("model.layers.11.mlp.down_proj", "disk"),
        ("lm_head.weight", 3),
    ]
    model.hf_device_map = dict(entries[::-1] if backwards else entries)
    assert mapped_place(model, parameter) == expected


def test_a_map_that_leaves_a_target_out_is_refused_with_its_entries() -> None:
    model, target = prepared()
    model.hf_device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "lm_head": "cpu"}
    with pytest.raises(PlacementError) as caught:
        place(model, target)
    for part in (f"no entry for {UP}", "model.embed_tokens", "model.layers.0", "lm_head"):
        assert part in str(caught.value)


@pytest.mark.parametrize("where", ["cpu", CPU, "cpu:0"], ids=repr)
def test_a_map_of_one_entry_for_the_whole_model_is_heard(where: Any) -> None:
    model, target = prepared()
    model.hf_device_map = {"": where}
    assert place(model, target) == Placement(CPU)
    assert is_dispatched(model)


def test_a_model_dispatched_to_the_cpu_is_edited_and_rolled_back() -> None:
    model = dispatch_model(toy_model("llama"), {"": "cpu"}, force_hooks=True)
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    before = weights(model)
    assert is_dispatched(model)

    network = toy_network(model, tokenizer)
    result = MendParallel(model, tokenizer, toy_hparams(names), network=network).edit(REQUEST)

    assert set(result.placements.values()) == {Placement(CPU)}
    edited = weights(model)
    assert all(not torch.equal(edited[name], before[name]) for name in names)
    result.rollback()
    assert_unchanged(model, before)


# --- accelerate's hooks


def test_the_innermost_hook_that_names_a_device_counts() -> None:
    model, target = prepared()
    outer = AlignDevicesHook(execution_device="cuda:1")
    inner = AlignDevicesHook(execution_device="cpu")
    silent = AlignDevicesHook(io_same_device=True)
    add_hook_to_module(model.model.layers[5], outer)
    add_hook_to_module(target.layer(model), silent)
    assert execution_hook(model, target.layer_name) is outer
    add_hook_to_module(model.model.layers[5].mlp, inner)
    assert execution_hook(model, target.layer_name) is inner
    assert execution_hook(model, "model.layers.4") is None


def test_a_hook_in_a_row_of_hooks_is_found() -> None:
    model, target = prepared()
    named = AlignDevicesHook(execution_device="cpu")
    row = SequentialHook(AlignDevicesHook(io_same_device=True), named)
    add_hook_to_module(target.layer(model), row)
    assert execution_hook(model, target.layer_name) is named
    assert is_dispatched(model)


def test_a_hook_on_the_whole_model_is_heard() -> None:
    model, target = prepared()
    hook = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(model, hook)
    assert execution_hook(model, target.layer_name) is hook
    assert execution_hook(model, "") is hook


# --- contradictions


CONTRADICTIONS: dict[str, tuple[dict[str, Any] | None, Any, tuple[str, str]]] = {
    "map": ({"": "cuda:1"}, None, ("'cuda:1'", "nothing")),
    "map-by-number": ({"": 1}, None, ("1", "nothing")),
    "map-says-disk": ({"": "disk"}, None, ("'disk'", "nothing")),
    "hook": (None, "cuda:2", ("nothing", "'cuda:2'")),
    "map-against-both": ({"": "cuda:1"}, "cpu", ("'cuda:1'", "'cpu'")),
    "hook-against-both": ({"": "cpu"}, "cuda:2", ("'cpu'", "'cuda:2'")),
    "all-three": ({"": "cuda:1"}, "cuda:2", ("'cuda:1'", "'cuda:2'")),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_witnesses_that_contradict_each_other_are_all_named(case: str) -> None:
    mapped, hooked, (map_says, hook_says) = CONTRADICTIONS[case]
    model, target = prepared()
    if mapped is not None:
        model.hf_device_map = mapped
    if hooked is not None:
        hook = AlignDevicesHook(execution_device=hooked)
        target.layer(model)._hf_hook = hook

    with pytest.raises(PlacementError) as caught:
        place(model, target)

    says = str(caught.value)
    assert says.startswith(f"{UP}: hf_device_map says {map_says}")
    assert f"accelerate's hook says {hook_says}" in says
    assert "the weight itself is on cpu" in says
    assert "dispatch" in says


def test_a_hook_that_says_offloaded_of_a_weight_that_is_there_is_a_contradiction() -> None:
    model, target = prepared()
    target.layer(model)._hf_hook = AlignDevicesHook(execution_device="cpu", offload=True)
    with pytest.raises(PlacementError, match=r"hook says 'cpu' \(offloaded\).*itself is on cpu"):
        place(model, target)


def test_a_map_that_says_a_device_of_a_weight_that_is_offloaded_is_a_contradiction() -> None:
    model, target = prepared()
    cpu_offload(model, execution_device=CPU)
    model.hf_device_map = {"": "cuda:0"}
    with pytest.raises(PlacementError, match=r"says 'cuda:0'.*\(offloaded\).*itself is on meta"):
        place(model, target)


# --- offloaded weights


def offloaded(how: str, folder: Path) -> Any:
    """A toy model whose weights are offloaded."""
    model = toy_model("llama")
    if how == "cpu":
        return cpu_offload(model, execution_device=CPU)
    if how == "disk":
        return disk_offload(model, str(folder), execution_device=CPU)
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"} | {
        f"model.layers.{number}": "disk" if number >= 3 else "cpu" for number in range(6)
    }
    device_map["model.rotary_emb"] = "cpu"
    return dispatch_model(
        model, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


@pytest.mark.parametrize(("how", "kept"), [("cpu", "ram"), ("disk", "dat"), ("map", "dat")])
def test_where_an_offloaded_target_computes_and_what_keeps_it_is_found(
    how: str, kept: str, tmp_path: Path
) -> None:
    model = offloaded(how, tmp_path)
    assert place(model, find_target(model, UP)) == Placement(CPU, kept)
    assert input_device(model) == CPU


def test_targets_are_edited_where_only_other_blocks_are_offloaded(tmp_path: Path) -> None:
    model = toy_model("llama")
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    network = toy_network(model, tokenizer)
    hparams = toy_hparams(names)
    twin = toy_model("llama")
    MendParallel(twin, tokenizer, hparams, network=network).edit(REQUEST)
    device_map = {"model.embed_tokens": "disk", "model.norm": "cpu", "lm_head": "cpu"} | {
        f"model.layers.{number}": "disk" if number < 3 else "cpu" for number in range(6)
    }
    device_map["model.rotary_emb"] = "cpu"
    dispatch_model(
        model, device_map, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
    )
    before = weights(model, names)

    result = MendParallel(model, tokenizer, hparams, network=network).edit(REQUEST)

    assert_unchanged(model, weights(twin, names))
    assert {place.kept for place in result.placements.values()} == {"resident"}
    result.rollback()
    assert_unchanged(model, before)


# --- names of devices


def test_a_bare_number_counts_accelerators() -> None:
    accelerator = torch.accelerator.current_accelerator()
    kind = accelerator.type if accelerator else "cuda"
    assert as_device(3) == as_device("3") == torch.device(kind, 3)
    assert as_device("cuda:1") == torch.device("cuda", 1)
    assert as_device(CPU) == CPU


def test_a_name_that_is_no_device_is_refused() -> None:
    with pytest.raises(PlacementError, match="'gpu0' is not a device"):
        as_device("gpu0")
    model, target = prepared()
    model.hf_device_map = {"": "gpu0"}
    with pytest.raises(PlacementError, match="'gpu0' is not a device"):
        place(model, target)


def test_a_model_may_be_dispatched_anew_between_two_edits() -> None:
    model, target = prepared()
    cpu_offload(model, execution_device=CPU)
    assert place(model, target) == Placement(CPU, "ram")
    remove_hook_from_submodules(model)
    assert place(model, target) == Placement(CPU)


@pytest.mark.parametrize("processes", [2, 1])
def test_plain_slices_of_a_tensor_parallel_plan_are_refused_before_anything_runs(
    processes: int,
) -> None:
    # what transformers 5.5 leaves under `tp_plan="auto"`: marked layers with plain tensors
    model = toy_model("llama")
    name = toy_targets(model)[0]
    layer = model.get_submodule(name.rpartition(".")[0])
    layer._hf_tp_plan = "colwise"
    layer._hf_device_mesh = SimpleNamespace(size=lambda: processes)
    if processes == 1:
        assert find_target(model, name).shape == find_target(toy_model("llama"), name).shape
        return
    layer.weight = torch.nn.Parameter(layer.weight.detach()[:12].clone())
    model.forward = None  # nothing may be computed

    with pytest.raises(PlacementError, match=f"{name} is split between processes .colwise., and"):
        MendParallel(model, tokenizer_for(model), toy_hparams(toy_targets(model)))
