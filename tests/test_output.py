"""An edit that is applied to outputs acts like one that is written, writes nothing, comes off
alone and exactly in any order, and lives through whatever is done to a model."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import logging
import random
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules
from breaks import Breaks
from edited import editor_of as any_editor_of
from torch import Tensor, nn
from torch.nn import functional as F
from toys import (
    OBSERVED,
    REQUEST,
    REQUESTS,
    assert_unchanged,
    same_bits,
    some_updates,
    three_layers,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_targets,
    weights,
)
from transformers import AutoModelForCausalLM

from easyedit_mend_parallel import HparamsError, UpdateError, rollback_all
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.plugins.hookspecs import hookimpl
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights.ledger import Entry, Ledger
from easyedit_mend_parallel.weights.stores import output as output_store
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.stores.output import OutputStaged, OutputStore, edited_outputs
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.target import Target, find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")
LOGGER = "easyedit_mend_parallel.weights.stores.output"
Updates = dict[str, LowRankUpdate]


editor_of = partial(any_editor_of, apply="output")


def logits(model: Any, requests: Any = REQUESTS) -> Tensor:
    with torch.no_grad():
        return make_batch(model, tokenizer_for(model), as_requests(requests)).logits(model)


def assert_close(one: Tensor, other: Tensor, relative: float = 1e-5) -> None:
    assert (one - other).abs().max() <= relative * other.abs().max()


def hooks(model: nn.Module) -> int:
    """How many hooks of any kind hang in the model."""
    return sum(
        len(module._forward_hooks)
        + len(module._forward_pre_hooks)
        + len(module._state_dict_pre_hooks)
        for module in model.modules()
    )


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(X.to(next(model.parameters()).dtype))
    return result


def replayed(model: nn.Module, targets: list[Target], changes: list[tuple[str, Updates]]) -> Tensor:
    """What a copy of an unedited model answers after `changes` (apply, updates), in order."""
    fresh = copy.deepcopy(model)
    for apply, updates in changes:
        Ledger.of(fresh).change(targets, updates, apply)
    return answer(fresh)


# --- acts as if it were written


@pytest.mark.parametrize("requests", [REQUEST, REQUESTS], ids=["one", "batch"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "t5"])
def test_it_gives_the_logits_of_a_written_edit_and_writes_nothing(
    family: str, requests: Any
) -> None:
    model, twin = toy_model(family), toy_model(family)
    before, plain = weights(model), logits(model)

    result = editor_of(model).edit(requests, losses_after=True)
    written = editor_of(twin, apply="weight").edit(requests, losses_after=True)

    assert (logits(twin) - plain).abs().max() > 1e-2 * plain.abs().max()
    assert_close(logits(model), logits(twin))
    assert result.losses == written.losses
    assert result.losses_after == pytest.approx(written.losses_after, rel=1e-4)
    assert_unchanged(model, before)
    result.rollback()
    assert torch.equal(logits(model), plain)
    assert hooks(model) == 0


def test_it_gives_the_logits_of_an_attached_update() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    targets = {target.name: target for target in editor.targets}
    result = editor.edit(REQUESTS)
    edited = logits(model)
    result.rollback()
    with attached(model, targets, result.updates):
        assert torch.equal(logits(model), edited)


def test_edits_of_an_edited_model_are_those_of_written_ones() -> None:
    """Each edit is computed on the model as the edits before it left it."""
    model, twin = toy_model("llama"), toy_model("llama")
    ours, written = editor_of(model), editor_of(twin, apply="weight")
    alone = editor_of(toy_model("llama")).edit(REQUESTS[2])
    for request in REQUESTS:
        result, expected = ours.edit(request), written.edit(request)

    name = ours.targets[0].name
    for part in ("keys", "values"):
        one, other = (getattr(r.updates[name], part) for r in (result, expected))
        assert_close(one, other, 1e-3)
        assert (getattr(alone.updates[name], part) - other).abs().max() > 1e-2 * other.abs().max()
    assert_close(logits(model), logits(twin), 1e-4)


def test_a_capture_sees_the_edited_output_and_a_gradient_passes_through_it() -> None:
    model, twin = toy_model("llama"), toy_model("llama")
    result = editor_of(model).edit(REQUEST)
    written = editor_of(twin, apply="weight").edit(REQUEST)
    assert result.losses == written.losses
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
    targets = find_targets(model, toy_targets(model))

    rows, losses = capture(model, targets, batch)
    expected, expected_losses = capture(twin, targets, batch)
    plain, _ = capture(toy_model("llama"), targets, batch)

    assert_close(losses, expected_losses, 1e-4)
    for target in targets:
        assert_close(rows[target.name].delta, expected[target.name].delta, 1e-3)
    lowest = targets[0].name  # the rows below it are as before: what differs is the gradient
    apart = (plain[lowest].delta - expected[lowest].delta).abs().max()
    assert apart > 1e-2 * expected[lowest].delta.abs().max()


def test_an_update_attached_on_top_is_felt_too() -> None:
    model, targets = three_layers()
    one, two = some_updates(targets, 0), some_updates(targets, 1)
    Ledger.of(model).change(targets, one, "output")
    with attached(model, {target.name: target for target in targets}, two):
        both = answer(model)
    Ledger.of(model).change(targets, two, "output")
    assert_close(both, answer(model), 1e-6)


def test_hooks_of_a_user_see_the_edited_output_whenever_they_were_made() -> None:
    model, targets = three_layers()
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    entry = Ledger.of(model).change(targets[:1], some_updates(targets[:1], 0), "output")
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    answer(model)
    assert seen[0] is seen[1]
    assert not torch.allclose(seen[0], F.linear(X, model[0].weight, model[0].bias))
    entry.undo()
    assert len(model[0]._forward_hooks) == 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_made_in_fp32_and_cast_once(dtype: torch.dtype) -> None:
    model, targets = three_layers()
    model.to(dtype)
    changes = [some_updates(targets[:1], seed) for seed in range(3)]
    x = X.to(dtype)
    output = F.linear(x, model[0].weight, model[0].bias).detach()
    for updates in changes:
        Ledger.of(model).change(targets[:1], updates, "output")

    with torch.no_grad():
        with_update = model[0](x)

    keys, values = (
        torch.cat([getattr(updates["0.weight"], part) for updates in changes])
        for part in ("keys", "values")
    )
    assert same_bits(with_update, (output.float() + x.float() @ keys.T @ values).to(dtype))
    Ledger.of(model).undo_all()
    with attached(model, {"0.weight": targets[0]}, changes[0]), torch.no_grad():
        with_update = model[0](x)
    added = x.float() @ changes[0]["0.weight"].keys.T @ changes[0]["0.weight"].values
    assert same_bits(with_update, (output.float() + added).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_it_is_as_near_to_fp32_as_a_written_edit(dtype: torch.dtype) -> None:
    exact, model, twin = (
        toy_model("llama"),
        toy_model("llama", dtype=dtype),
        toy_model("llama", dtype=dtype),
    )
    updates = editor_of(exact).edit(REQUEST).updates
    targets = find_targets(model, list(updates))
    Ledger.of(model).change(targets, updates, "output")
    Ledger.of(twin).change(targets, updates, "weight")

    assert logits(model).dtype == dtype
    ours = (logits(model).float() - logits(exact)).abs().mean()
    written = (logits(twin).float() - logits(exact)).abs().mean()
    assert ours < 1.2 * written


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_generate_feels_it(family: str) -> None:
    model, twin = toy_model(family), toy_model(family)
    ids = torch.arange(4, 12)[None]
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    result = editor_of(model, edit_lr=1e-2).edit(REQUESTS)
    editor_of(twin, apply="weight", edit_lr=1e-2).edit(REQUESTS)

    ours = model.generate(ids, max_new_tokens=8, do_sample=False)

    assert torch.equal(ours, twin.generate(ids, max_new_tokens=8, do_sample=False))
    assert not torch.equal(ours, plain)
    result.rollback()
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), plain)


# --- wholly or not at all, and off again


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates_come_off_in_any_order_and_leave_exactly_the_others(
    order: tuple[int, ...], dtype: torch.dtype
) -> None:
    model, targets = three_layers()
    model.to(dtype)
    fresh = copy.deepcopy(model)
    subsets = ([0, 1], [1, 2], [0, 1, 2])
    changes = [
        ("output", some_updates([targets[place] for place in places], seed, rows=2 + seed))
        for seed, places in enumerate(subsets)
    ]
    entries = [Ledger.of(model).change(targets, updates, apply) for apply, updates in changes]

    left = list(range(3))
    for which in order:
        entries[which].undo()
        left.remove(which)
        assert torch.equal(answer(model), replayed(fresh, targets, [changes[one] for one in left]))
        assert not entries[which].applied
        assert entries[which].before() == {}
    assert hooks(model) == 0


def test_an_undo_in_the_middle_stages_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = three_layers()
    fresh = copy.deepcopy(model)
    applies = ("weight", "output", "output", "weight", "output")
    changes = [(apply, some_updates(targets, seed)) for seed, apply in enumerate(applies)]
    entries = [Ledger.of(model).change(targets, updates, apply) for apply, updates in changes]
    before = weights(model)

    with monkeypatch.context() as patch:
        for staged in (OutputStaged, ResidentStaged):
            patch.setattr(staged, "__init__", lambda *_: pytest.fail("staged"))
        patch.setattr(ResidentStaged, "undo", lambda *_: pytest.fail("undone"))
        entries[1].undo()

    assert_unchanged(model, before)
    del changes[1]
    assert torch.equal(answer(model), replayed(fresh, targets, changes))
    monkeypatch.setattr(OutputStaged, "commit", lambda *_: pytest.fail("hung again"))
    entries[0].undo()  # of a weight: what hangs on outputs is left alone
    monkeypatch.undo()
    assert torch.equal(answer(model), replayed(fresh, targets, changes[1:]))


@pytest.mark.parametrize("after", [False, True], ids=["before-hanging", "after-hanging"])
@pytest.mark.parametrize("k", range(3))
def test_an_edit_that_breaks_at_any_layer_changes_nothing(
    k: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = three_layers()
    Ledger.of(model).change(targets[:2], some_updates(targets[:2], 0), "output")
    edited, hanging = answer(model), edited_outputs(model)

    with monkeypatch.context() as patch:
        Breaks(patch, OutputStaged, "commit", k, after=after)
        with pytest.raises(KeyboardInterrupt):
            Ledger.of(model).change(targets, some_updates(targets, 1), "output")

    assert torch.equal(answer(model), edited)
    assert edited_outputs(model) == hanging
    Ledger.of(model).undo_all()
    assert hooks(model) == 0


@pytest.mark.parametrize("kinds", ["output", "weight-then-output", "mixed"])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("after", [False, True], ids=["before-taking", "after-taking"])
@pytest.mark.parametrize("k", range(3))
def test_an_undo_that_breaks_at_any_layer_changes_nothing(
    kinds: str, place: int, after: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = three_layers()
    applies = {
        "output": ["output"] * 3,
        "weight-then-output": ["weight", "output", "output"],
        "mixed": ["output", "weight", "output"],
    }[kinds]
    entries = [
        Ledger.of(model).change(targets, some_updates(targets, seed), apply)
        for seed, apply in enumerate(applies)
    ]
    edited, before = answer(model), weights(model)
    if applies[place] == "weight":
        return

    with monkeypatch.context() as patch:
        Breaks(patch, OutputStaged, "undo", k, after=after)
        with pytest.raises(KeyboardInterrupt):
            entries[place].undo()

    assert torch.equal(answer(model), edited)
    assert_unchanged(model, before)
    assert all(entry.applied for entry in entries)
    for entry in entries:
        entry.undo()
    assert hooks(model) == 0


class OnlyTheSecondLayerTakesNoWrites:
    """A plugin that hangs updates on layer 1 even where they were to be written."""

    @hookimpl
    def weight_store(self, place: WeightPlace) -> Any:
        if place.target.name == "1.weight":
            return OutputStore(place.target, place.target.layer(place.model), place.model)
        return None


@pytest.fixture
def both_in_one_change() -> Iterator[None]:
    plugin = OnlyTheSecondLayerTakesNoWrites()
    plugin_manager().register(plugin)
    yield
    plugin_manager().unregister(plugin)


@pytest.mark.usefixtures("both_in_one_change")
@pytest.mark.parametrize("k", range(4))
def test_a_change_of_both_kinds_comes_out_of_the_middle_wholly_or_not_at_all(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = three_layers()
    fresh = copy.deepcopy(model)
    changes = [("weight", some_updates(targets, seed)) for seed in range(3)]
    entries = [Ledger.of(model).change(targets, updates, apply) for apply, updates in changes]
    edited, before = answer(model), weights(model)
    assert edited_outputs(model) == {"1": 3}

    calls = itertools.count()
    original = ResidentStaged.commit

    def commit(staged: ResidentStaged) -> None:
        original(staged)
        if next(calls) == k:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResidentStaged, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            entries[0].undo()

    assert torch.equal(answer(model), edited)
    assert_unchanged(model, before)
    constructed: list[int] = []
    monkeypatch.setattr(OutputStore, "stage", lambda *_: constructed.append(1))
    entries[0].undo()
    assert not constructed
    monkeypatch.undo()
    assert torch.equal(answer(model), replayed(fresh, targets, changes[1:]))
    Ledger.of(model).undo_all()
    assert torch.equal(answer(model), answer(fresh))


@pytest.mark.parametrize("seed", range(30))
def test_any_history_of_both_kinds_is_what_replaying_it_gives(seed: int) -> None:
    chance = random.Random(seed)
    model, targets = three_layers()
    model.to(chance.choice(DTYPES))
    fresh, base = copy.deepcopy(model), weights(model)
    ledger = Ledger.of(model)
    changes: dict[int, tuple[str, Updates]] = {}
    held: dict[int, Entry] = {}

    for step in range(25):
        action = chance.choice(["change", "change", "undo", "let go", "fail", "undo all"])
        if action == "undo all" and chance.random() < 0.7:
            continue
        if action in ("change", "fail"):
            some = chance.sample(targets, chance.randint(1, 3))
            apply = chance.choice(["weight", "output", "output"])
            updates = some_updates(some, 1000 * seed + step, rows=chance.randint(1, 4))
            if action == "change":
                entry = ledger.change(targets, updates, apply)
                changes[step] = apply, updates
                if chance.random() < 0.5:
                    held[step] = entry
                del entry
            else:
                with pytest.MonkeyPatch.context() as patch:
                    after = chance.random() < 0.5
                    breaks = Breaks(patch, OutputStaged, "commit", len(some) - 1, after=after)
                    if apply == "output":
                        with pytest.raises(KeyboardInterrupt):
                            ledger.change(targets, updates, apply)
                    assert breaks.calls == (len(some) if apply == "output" else 0)
        elif action == "undo" and held:
            which = chance.choice(list(held))
            held.pop(which).undo()
            changes.pop(which, None)
        elif action == "let go" and held:
            held.pop(chance.choice(list(held)))
        elif action == "undo all":
            ledger.undo_all()
            changes.clear()
        assert torch.equal(answer(model), replayed(fresh, targets, list(changes.values())))
        assert all(entry.applied == (which in changes) for which, entry in held.items())

    ledger.undo_all()
    assert torch.equal(answer(model), answer(fresh))
    assert_unchanged(model, base)
    assert hooks(model) == 0


def test_rollback_all_takes_off_and_puts_back_what_every_editor_did() -> None:
    model = toy_model("llama")
    before, plain = weights(model), logits(model)
    hanging, writing = editor_of(model), editor_of(model, apply="weight")
    held = [hanging.edit(REQUEST), writing.edit(REQUESTS[1])]
    hanging.edit(REQUESTS[2])  # nobody holds these two
    writing.edit(REQUEST)
    assert set(edited_outputs(model).values()) == {2}

    hanging.rollback_all()

    assert_unchanged(model, before)
    assert torch.equal(logits(model), plain)
    assert not any(result.entry.applied for result in held)
    assert hooks(model) == 0


def test_an_update_that_is_not_finite_is_refused_and_nothing_hangs() -> None:
    model, targets = three_layers()
    updates = some_updates(targets, 0)
    updates["1.weight"].values[0, 0] = float("nan")
    with pytest.raises(UpdateError, match=r"1\.weight"):
        Ledger.of(model).change(targets, updates, "output")
    assert hooks(model) == 0


# --- what is kept


def test_before_an_edit_of_outputs_is_the_weight_itself() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    result = editor.edit(REQUEST)
    before = result.entry.before()
    assert set(before) == {target.name for target in editor.targets}
    for name, weight in before.items():
        assert weight.data_ptr() == model.get_parameter(name).data_ptr()
        assert not weight.requires_grad


def test_rows_that_nobody_holds_are_kept_once() -> None:
    model, targets = three_layers()
    refs = []
    for seed in range(10):
        updates = some_updates(targets, seed)
        refs += [weakref.ref(update.keys) for update in updates.values()]
        Ledger.of(model).change(targets, updates, "output")
        del updates
    gc.collect()
    assert sum(ref() is not None for ref in refs) <= len(targets)  # those of the last change
    assert edited_outputs(model) == {"0": 10, "1": 10, "2": 10}
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is Tensor and tensor.dim() == 2 and tensor.dtype == torch.float32
        if tensor.shape[0] in (3, 30)
    }
    assert sum(storages.values()) <= (10 + 2) * 3 * 4 * sum(sum(target.shape) for target in targets)


def test_a_deleted_model_is_freed_though_results_are_held() -> None:
    editor = editor_of(toy_model("llama"))
    result = editor.edit(REQUEST)
    model = weakref.ref(editor.model)
    del editor
    gc.collect()
    assert model() is None
    result.rollback()
    assert result.entry.before() == {}


# --- whatever is done to the model


def test_a_deep_copy_keeps_the_edits_made_before_and_goes_its_own_way() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    plain = logits(model)
    first = editor.edit(REQUEST)
    once = logits(model)

    twin = copy.deepcopy(model)

    assert torch.equal(logits(twin), once)
    second = editor.edit(REQUESTS[1])
    assert torch.equal(logits(twin), once)
    third = editor_of(twin).edit(REQUESTS[2])
    third.rollback()
    assert torch.equal(logits(twin), once)
    first.rollback()
    second.rollback()
    assert torch.equal(logits(model), plain)
    assert hooks(model) == 0
    assert torch.equal(logits(twin), once)
    rollback_all(twin)  # it has no history of its own, as with written edits
    assert torch.equal(logits(twin), once)


def test_a_pickled_model_keeps_its_edits() -> None:
    model = toy_model("llama")
    editor_of(model).edit(REQUEST)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits(loaded), logits(model))


def test_saving_says_that_the_edits_are_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model("llama")
    plain, before = logits(model), model.state_dict()
    result = editor_of(model).edit(REQUEST)

    with caplog.at_level(logging.WARNING, LOGGER):
        model.save_pretrained(tmp_path)

    said = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(said) == 1
    assert "without their edits" in said[0]
    assert "model.layers.5.mlp.down_proj" in said[0]
    assert "save_edited" in said[0]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(logits(saved), plain)
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(same_bits(now[name], before[name]) for name in now)

    caplog.clear()
    twin = copy.deepcopy(model)
    twin.state_dict()
    assert len(caplog.records) == 1  # a copy says so, too
    caplog.clear()
    result.rollback()
    model.save_pretrained(tmp_path)
    assert not caplog.records


def test_casts_and_moves_leave_the_edits_and_the_way_back() -> None:
    model, twin = toy_model("llama"), toy_model("llama")
    result = editor_of(model).edit(REQUEST)
    editor_of(twin, apply="weight").edit(REQUEST)
    model.double().to("cpu")
    assert logits(model).dtype == torch.float64
    assert_close(logits(model), logits(twin.double()))
    result.rollback()
    assert torch.equal(logits(model), logits(toy_model("llama").double()))


def test_an_edit_in_inference_mode_does_not_bar_the_next_one() -> None:
    """Tensors made in inference mode cannot be kept for a backward pass."""
    model, twin = toy_model("llama"), toy_model("llama")
    editor, other = editor_of(model), editor_of(twin)
    with torch.inference_mode():
        editor.edit(REQUEST)
        logits(model)
    editor.edit(REQUESTS[1])
    other.edit(REQUEST)
    other.edit(REQUESTS[1])
    assert torch.equal(logits(model), logits(twin))


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_targets_are_edited_where_they_are(how: str, tmp_path: Path) -> None:
    model, twin = toy_model("llama"), toy_model("llama")
    plain, before = logits(model), weights(model)
    if how == "cpu":
        cpu_offload(model, execution_device=CPU)
    else:
        disk_offload(model, str(tmp_path), execution_device=CPU)
    accelerates = [getattr(module, "_hf_hook", None) for module in model.modules()]
    editor_of(twin).edit(REQUESTS)

    result = editor_of(model).edit(REQUESTS)

    assert {place.kept for place in result.placements.values()} <= {"ram", "dat"}
    assert torch.equal(logits(model), logits(twin))
    assert [getattr(module, "_hf_hook", None) for module in model.modules()] == accelerates
    assert set(result.entry.before()) == set(toy_targets(model))
    result.rollback()
    assert torch.equal(logits(model), plain)
    editor_of(model).edit(REQUEST)
    remove_hook_from_submodules(model)  # dispatched anew: the edits stay
    assert_unchanged(model, before)
    assert not torch.equal(logits(model), plain)
    rollback_all(model)
    assert torch.equal(logits(model), plain)


# --- the option


def test_the_option_is_weight_unless_it_is_output() -> None:
    names = ["model.layers.0.mlp.up_proj.weight"]
    assert toy_hparams(names).apply == "weight"
    assert toy_hparams(names, apply="output").apply == "output"
    with pytest.raises(HparamsError, match=r"apply is 'outputs'.*'weight'.*'output'"):
        toy_hparams(names, apply="outputs")


def test_the_option_picks_the_store() -> None:
    model, targets = three_layers()
    assert isinstance(store_for(model, targets[0], "output"), OutputStore)
    assert not isinstance(store_for(model, targets[0], "weight"), OutputStore)


def test_a_shard_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = three_layers()
    monkeypatch.setattr(output_store, "shard_of", lambda *_: object())
    with pytest.raises(UpdateError, match=r"0\.weight is a shard.*apply: weight"):
        store_for(model, targets[0], "output")


def test_many_edits_add_up() -> None:
    model, twin = toy_model("llama"), toy_model("llama")
    ours, written = editor_of(model, edit_lr=1e-4), editor_of(twin, apply="weight", edit_lr=1e-4)
    for request in [*REQUESTS, *OBSERVED]:
        ours.edit(request)
        written.edit(request)
    assert set(edited_outputs(model).values()) == {7}
    assert_close(logits(model), logits(twin), 1e-4)
