"""An edit that is applied to outputs on simulated accelerators: it is the one-device edit wherever
the layers compute, offloaded ones too, and follows a model that is dispatched anew."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import simulated_accelerators
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from placements import PLACEMENTS, device_map
from torch import Tensor, nn
from toys import (
    REQUEST,
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, rollback_all
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.stores.output import OutputEdits, edited_outputs
from easyedit_mend_parallel.weights.update import attached

CUT = "llama-cut-at-5"
"""The cut that runs through the edited blocks."""
SIM0, SIM1 = torch.device("sim:0"), torch.device("sim:1")
SOME = [CUT, "gpt2-cut-at-4", "llama-head-back", "mistral-zigzag", "gptj-three-devices"]


def spread(model: Any, placement: str = CUT, **offloaded: Any) -> Any:
    _, blocks, head = PLACEMENTS[placement]
    where = device_map(model, blocks, head) | offloaded.pop("places", {})
    return dispatch_model(model, where, main_device="sim:0", **offloaded)


@cache
def network_for(family: str) -> Hypernetwork:
    plain = toy_model(family)
    return toy_network(plain, tokenizer_for(plain), edit_lr=1e-3)


def editor_of(model: Any, apply: str = "output", device: str = "cpu") -> MendParallel:
    """An editor with the network of the model's family on `device`."""
    network = copy.deepcopy(network_for(model.config.model_type)).to(device)
    hparams = toy_hparams(toy_targets(model), apply=apply)
    return MendParallel(model, tokenizer_for(model), hparams, network=network)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
        return batch.logits(model).cpu()


def assert_close(one: Tensor, other: Tensor, relative: float = 2e-5) -> None:
    assert (one - other).abs().max() <= relative * other.abs().max()


def undispatched(model: Any) -> Any:
    remove_hook_from_submodules(model)
    model.__dict__.pop("hf_device_map", None)
    return nn.Module.to(model, "cpu")


def hanging(model: Any) -> dict[str, str]:
    """{target: the device on which its layer's updates lie}"""
    devices = {}
    for name in toy_targets(model):
        edits = OutputEdits.on(model.get_submodule(name.removesuffix(".weight")))
        assert edits is not None
        devices[name] = str(edits.total.keys.device)
    return devices


@pytest.mark.parametrize("placement", SOME)
def test_on_any_placement_it_is_the_written_edit_of_one_device(placement: str) -> None:
    family = PLACEMENTS[placement][0]
    one_device = toy_model(family)
    model = spread(toy_model(family), placement)
    before, plain = weights(model), logits(model)
    editor = editor_of(model)

    for request in (REQUEST, REQUESTS):
        result = editor.edit(request)
        editor_of(one_device, "weight").edit(request)

    assert_close(logits(model), logits(one_device), 1e-4)
    assert (logits(model) - plain).abs().max() > 1e-2 * plain.abs().max()
    assert_unchanged(model, before)
    assert hanging(model) == {
        name: str(before[name].device) for name in before if name in hanging(model)
    }
    result.rollback()
    rollback_all(model)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(("mapped", "kept"), [("cpu", "ram"), ("disk", "dat")])
def test_offloaded_targets_are_edited_on_the_device_where_they_compute(
    mapped: str, kept: str, tmp_path: Path
) -> None:
    one_device = toy_model("llama")
    editor_of(one_device, "weight").edit(REQUESTS)
    places = {"model.layers.3": mapped, "model.layers.4": mapped}
    model = spread(toy_model("llama"), places=places, offload_dir=str(tmp_path))
    plain = logits(model)

    result = editor_of(model).edit(REQUESTS)

    assert {p.kept for p in result.placements.values()} == {kept, "resident"}
    assert_close(logits(model), logits(one_device))
    assert set(hanging(model).values()) == {"sim:0", "sim:1"}
    result.rollback()
    assert torch.equal(logits(model), plain)


def test_one_of_each_kind_is_edited_together(tmp_path: Path) -> None:
    one_device = toy_model("llama")
    editor_of(one_device, "weight").edit(REQUEST)
    places = {"model.layers.3": "disk", "model.layers.4": "cpu"}
    model = spread(toy_model("llama"), places=places, offload_dir=str(tmp_path))
    plain = logits(model)
    result = editor_of(model, device="sim:2").edit(REQUEST)
    assert {p.kept for p in result.placements.values()} == {"ram", "dat", "resident"}
    assert_close(logits(model), logits(one_device))
    result.rollback()
    assert torch.equal(logits(model), plain)


def test_a_model_that_is_dispatched_anew_takes_its_edits_along_and_moves_them_once() -> None:
    model = spread(toy_model("llama"))
    plain = logits(undispatched(copy.deepcopy(model)))
    first = editor_of(model).edit(REQUEST)
    edited = logits(model)
    assert set(hanging(model).values()) == {"sim:0", "sim:1"}

    model = spread(undispatched(model), "llama-three-devices")

    assert_close(logits(model), edited)
    assert set(hanging(model).values()) == {"sim:1", "sim:2"}
    simulated_accelerators.reset_copied_bytes()
    logits(model)
    with_edits = simulated_accelerators.copied_bytes()
    second = editor_of(model).edit(REQUESTS)
    first.rollback()
    second.rollback()
    assert edited_outputs(model) == {}
    simulated_accelerators.reset_copied_bytes()
    logits(model)
    assert with_edits == simulated_accelerators.copied_bytes()  # rows did not travel again
    assert torch.equal(logits(undispatched(model)), plain)


def test_a_copy_of_a_spread_model_keeps_its_edits_and_goes_its_own_way() -> None:
    model = spread(toy_model("llama"))
    plain = logits(model)
    result = editor_of(model).edit(REQUEST)
    edited = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), edited)
    result.rollback()
    assert torch.equal(logits(model), plain)
    assert torch.equal(logits(twin), edited)


def test_an_update_attached_on_top_is_felt_on_each_device() -> None:
    model = spread(toy_model("llama"))
    editor = editor_of(model)
    targets = {target.name: target for target in editor.targets}
    first = editor.edit(REQUEST)
    second = editor.edit(REQUESTS)
    both = logits(model)
    second.rollback()
    with attached(model, targets, second.updates):
        assert_close(logits(model), both)
    first.rollback()


def test_a_target_whose_input_arrives_from_another_device() -> None:
    """accelerate moves the head's input inside the forward that it wraps; a hook sees it before."""
    one_device = toy_model("llama")
    model = spread(toy_model("llama"), "llama-head-back", places={"model.norm": "sim:1"})
    assert (model.model.norm.weight.device, model.lm_head.weight.device) == (SIM1, SIM0)
    names = [*toy_targets(model), "lm_head.weight"]
    network = toy_network(one_device, tokenizer_for(one_device), names, edit_lr=1e-3)
    for each, apply in ((model, "output"), (one_device, "weight")):
        hparams = toy_hparams(names, apply=apply)
        MendParallel(each, tokenizer_for(each), hparams, network=network).edit(REQUESTS)
    assert edited_outputs(model)["lm_head"] == 1
    assert_close(logits(model), logits(one_device))


def test_generate_feels_it_across_devices() -> None:
    one_device, model = toy_model("llama"), spread(toy_model("llama"))
    editor_of(model).edit(REQUESTS)
    editor_of(one_device, "weight").edit(REQUESTS)
    ids = torch.arange(4, 12)[None]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = one_device.generate(ids, **options)
    assert torch.equal(model.generate(ids.to("sim:0"), **options).cpu(), expected)
