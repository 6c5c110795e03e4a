"""An edit of a model that is spread over simulated accelerators equals the edit on one device, on
every placement, and rollback gives every bit back; where the handling of devices is broken on
purpose, every placement notices and the model is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from oracle import assert_same_edit
from placements import PLACEMENTS, device_map
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toys import (
    REQUEST,
    REQUESTS,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, PlacementError
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

TWO_DEVICES = "llama-cut-at-5"
"""The cut that runs through the edited blocks."""


def spread(model: Any, placement: str) -> Any:
    _, blocks, head = PLACEMENTS[placement]
    return dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")


def editor_of(
    model: Any, names: list[str], network: Hypernetwork, device: str | None = None
) -> MendParallel:
    """An editor with a copy of `network` on `device`: by default beside the highest target."""
    home = device or model.get_parameter(names[-1]).device
    hparams = toy_hparams(names)
    return MendParallel(
        model, tokenizer_for(model), hparams, network=copy.deepcopy(network).to(home)
    )


class Waits(TorchDispatchMode):
    """Counts what the host waits for an accelerator for: what it reads from one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = operator(*args, **(kwargs or {}))
        if any(isinstance(arg, Tensor) and arg.device.type == "sim" for arg in args):
            masks = args[1] if operator.overloadpacket is torch.ops.aten.index else ()
            self.count += (
                isinstance(output, (bool, int, float))
                or (isinstance(output, Tensor) and output.device.type == "cpu")
                or "nonzero" in str(operator)
                or any(mask is not None and mask.dtype == torch.bool for mask in masks)
            )
        return output


def test_an_edit_waits_for_the_devices_once() -> None:
    one_device = toy_model("llama")
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    editor = editor_of(spread(one_device, TWO_DEVICES), names, network)
    editor.edit(REQUEST).rollback()

    with Waits() as waits:
        result = editor.edit(REQUEST)

    assert waits.count == 1  # is every update finite?
    with Waits() as waits:
        assert (len(result.losses), len(result.tokens)) == (1, 1)
    assert waits.count == 2


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_edit_on_any_placement_equals_the_edit_on_one_device(placement: str, tied: bool) -> None:
    one_device = toy_model(PLACEMENTS[placement][0], tied=tied)
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    model = spread(copy.deepcopy(one_device), placement)
    before = weights(model)
    plain = weights(one_device, names)

    expected = editor_of(one_device, names, network).edit(REQUESTS)
    result = editor_of(model, names, network).edit(REQUESTS)

    for name in names:
        assert model.get_parameter(name).device == before[name].device
        assert_same_edit(
            model.get_parameter(name).cpu(), one_device.get_parameter(name), plain[name]
        )
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    result.rollback()
    assert_unchanged(model, before)


@contextmanager
def rows_are_not_moved_to_the_network() -> Iterator[None]:
    def gathered(self: Hypernetwork, group: Any, rows: Any) -> tuple[Tensor, ...]:
        parts = [rows[target.name] for target in group]
        counts = torch.tensor([len(part.live) for part in parts])
        return (
            torch.cat([part.x.float() for part in parts]),
            torch.cat([part.delta.float() for part in parts]),
            torch.cat([part.live for part in parts]),
            torch.arange(len(group)).repeat_interleave(counts),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hypernetwork, "_gathered", gathered)
        yield


@contextmanager
def updates_are_not_moved_to_the_weight() -> Iterator[None]:
    forward = Hypernetwork.forward

    def at_the_network(self: Hypernetwork, rows: Any) -> dict[str, LowRankUpdate]:
        home = self.edit_lrs.device
        return {name: update.to(home) for name, update in forward(self, rows).items()}

    def write(self: LowRankUpdate, weight: Tensor, transposed: bool) -> None:
        left, right = (self.keys, self.values) if transposed else (self.values, self.keys)
        weight.addmm_(left.T, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hypernetwork, "forward", at_the_network)
        patch.setattr(LowRankUpdate, "write", write)
        yield


@pytest.mark.parametrize(
    "broken", [rows_are_not_moved_to_the_network, updates_are_not_moved_to_the_weight]
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_notices_broken_device_handling(placement: str, broken: Any) -> None:
    model = toy_model(PLACEMENTS[placement][0])
    names = toy_targets(model)
    network = toy_network(model, tokenizer_for(model))
    model = spread(model, placement)
    before = weights(model)
    editor = editor_of(model, names, network, device="cpu")

    with broken(), pytest.raises(RuntimeError, match="device"):
        editor.edit(REQUEST)

    assert_unchanged(model, before)
    editor.edit(REQUEST)  # and unbroken, the same editor edits


@pytest.mark.parametrize("device", ["cpu", "sim:0", "sim:1", "sim:3"])
def test_the_network_may_live_on_any_device(device: str) -> None:
    one_device = toy_model("llama")
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    model = spread(copy.deepcopy(one_device), TWO_DEVICES)
    plain = weights(one_device, names)

    editor_of(one_device, names, network).edit(REQUEST)
    editor_of(model, names, network, device).edit(REQUEST)

    for name in names:
        assert_same_edit(
            model.get_parameter(name).cpu(), one_device.get_parameter(name), plain[name]
        )


def test_by_default_the_network_lives_beside_the_highest_target(tmp_path: Any) -> None:
    from easyedit_mend_parallel import save_archive

    model = toy_model("llama")
    names = toy_targets(model)
    archive = save_archive(
        tmp_path / "archive.safetensors", toy_network(model, tokenizer_for(model))
    )
    model = spread(model, TWO_DEVICES)

    lowest_last = list(reversed(names))  # the order of inner_params does not say which is highest
    network = toy_network(toy_model("llama"), tokenizer_for(model), lowest_last)
    save_archive(archive, network)
    hparams = toy_hparams(lowest_last, archive=str(archive))
    beside = MendParallel(model, tokenizer_for(model), hparams)
    elsewhere = MendParallel(
        model,
        tokenizer_for(model),
        toy_hparams(lowest_last, archive=str(archive), network_device="sim:2"),
    )

    assert str(beside.network.edit_lrs.device) == "sim:1"
    assert {str(p.device) for p in elsewhere.network.parameters()} == {"sim:2"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("placement", [TWO_DEVICES, "mistral-zigzag", "gptj-three-devices"])
def test_in_half_precision_a_spread_edit_is_within_the_stated_bound(
    dtype: torch.dtype, placement: str
) -> None:
    """One unit in the last place of W, and 16 roundings of the largest change.

    Real updates are 1e-4 of the weights, so the second term is then below the first.
    """
    one_device = toy_model(PLACEMENTS[placement][0], dtype=dtype)
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    plain = weights(one_device, names)
    model = spread(copy.deepcopy(one_device), placement)
    before = weights(model)
    result = editor_of(model, names, network).edit(REQUEST)
    editor_of(one_device, names, network).edit(REQUEST)

    for name in names:
        ours, expected = model.get_parameter(name).cpu(), one_device.get_parameter(name).detach()
        change = (expected.float() - plain[name].float()).abs().max()
        unit = torch.nextafter(expected.abs(), torch.tensor(torch.inf, dtype=dtype))
        unit = unit.float() - expected.abs().float()
        bound = unit + 16 * torch.finfo(dtype).eps * change
        assert ((ours.float() - expected.float()).abs() <= bound).all()
        assert not same_bits(ours, plain[name])
    result.rollback()
    assert_unchanged(model, before)


def test_a_target_whose_input_arrives_from_another_device() -> None:
    """accelerate moves the head's input inside the forward that it wraps; a hook sees it before."""
    one_device = toy_model("llama")
    names = [*toy_targets(one_device), "lm_head.weight"]
    network = toy_network(one_device, tokenizer_for(one_device), names)
    model = spread(copy.deepcopy(one_device), "llama-head-back")
    assert str(model.lm_head.weight.device) == "sim:0"
    plain = weights(one_device, names)

    editor_of(one_device, names, network).edit(REQUEST)
    editor_of(model, names, network).edit(REQUEST)

    for name in names:
        assert_same_edit(
            model.get_parameter(name).cpu(), one_device.get_parameter(name), plain[name]
        )


def test_a_change_of_a_dispatched_llamas_weight_changes_its_forward() -> None:
    """EasyEdit's issue 342: under a device map the forward pass ignored the changed weights."""
    one_device = toy_model("llama")
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    model = spread(copy.deepcopy(one_device), TWO_DEVICES)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        unedited = model(input_ids=ids).logits.cpu()

    editor_of(model, names, network).edit(REQUEST)
    editor_of(one_device, names, network).edit(REQUEST)

    with torch.no_grad():
        edited, expected = model(input_ids=ids).logits.cpu(), one_device(input_ids=ids).logits
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)
    assert (edited - unedited).abs().max() > 100 * (edited - expected).abs().max()


def test_an_update_that_is_felt_and_not_written_acts_on_each_device() -> None:
    model = spread(toy_model("llama"), TWO_DEVICES)
    names = toy_targets(model)
    network = toy_network(toy_model("llama"), tokenizer_for(model))
    editor = editor_of(model, names, network)
    ids = torch.arange(4, 12)[None].repeat(2, 1)
    result = editor.edit(REQUEST)
    with torch.no_grad():
        written = model(input_ids=ids).logits.cpu()
    result.rollback()
    by_name = {target.name: target for target in editor.targets}

    with attached(model, by_name, result.updates, route=torch.tensor([0, -1])), torch.no_grad():
        with_update = model(input_ids=ids).logits.cpu()
    with torch.no_grad():
        unedited = model(input_ids=ids).logits.cpu()

    torch.testing.assert_close(with_update[0], written[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(with_update[1], unedited[1])
    assert not torch.allclose(with_update[0], unedited[0])


def test_a_model_that_was_dispatched_anew_since_its_edit_is_rolled_back_where_it_is() -> None:
    model = toy_model("llama")
    names = toy_targets(model)
    network = toy_network(model, tokenizer_for(model))
    before = weights(model)
    model = spread(model, TWO_DEVICES)
    result = editor_of(model, names, network).edit(REQUEST)

    remove_hook_from_submodules(model)
    del model.hf_device_map
    nn.Module.to(model, "cpu")
    model = spread(model, "llama-three-devices")
    result.rollback()

    assert str(model.get_parameter(names[0]).device) == "sim:1"
    assert_unchanged(_on_cpu(model), before)


def _on_cpu(model: Any) -> Any:
    remove_hook_from_submodules(model)
    return nn.Module.to(model, "cpu")


def test_an_update_that_fails_on_one_device_leaves_no_device_edited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = spread(toy_model("llama"), TWO_DEVICES)
    names = toy_targets(model)
    network = toy_network(toy_model("llama"), tokenizer_for(model))
    editor = editor_of(model, names, network)
    before = weights(model)
    write, calls = LowRankUpdate.write, []

    def fails_at_the_last(self: LowRankUpdate, weight: Tensor, transposed: bool) -> None:
        calls.append(weight.device)
        write(self, weight, transposed)
        if len(calls) == len(names):
            raise RuntimeError("no more room")

    monkeypatch.setattr(LowRankUpdate, "write", fails_at_the_last)
    with pytest.raises(RuntimeError, match="no more room"):
        editor.edit(REQUEST)

    assert {str(device) for device in calls} == {"sim:0", "sim:1"}
    assert_unchanged(model, before)
    Ledger.of(model).undo_all()
    assert_unchanged(model, before)


def test_a_map_that_the_hooks_contradict_is_refused() -> None:
    model = spread(toy_model("llama"), TWO_DEVICES)
    model.hf_device_map["model.layers.4"] = "sim:3"

    with pytest.raises(PlacementError, match=r"sim:3.*hook says.*sim:0.*weight itself.*sim:0"):
        editor_of(model, toy_targets(model), toy_network(toy_model("llama"), tokenizer_for(model)))


def test_numbers_in_a_device_map_mean_this_machines_accelerators() -> None:
    one_device = toy_model("llama")
    names = toy_targets(one_device)
    network = toy_network(one_device, tokenizer_for(one_device))
    _, blocks, head = PLACEMENTS[TWO_DEVICES]
    model = copy.deepcopy(one_device)
    model = dispatch_model(model, device_map(model, blocks, head, name=int), main_device=0)
    plain = weights(one_device, names)

    editor_of(one_device, names, network).edit(REQUEST)
    editor_of(model, names, network).edit(REQUEST)

    for name in names:
        assert_same_edit(
            model.get_parameter(name).cpu(), one_device.get_parameter(name), plain[name]
        )
