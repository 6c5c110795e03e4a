"""A model is changed wholly or not at all, every change comes out again to the bit in whatever
order, and what nobody can ask for is forgotten."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from breaks import Breaks
from torch import Tensor, nn
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
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, TargetError, UpdateError, rollback_all
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.weights.ledger import Entry, Ledger
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Updates = dict[str, LowRankUpdate]


def editor_of(
    family: str = "llama", dtype: torch.dtype = torch.float32, model: Any = None, **options: Any
) -> MendParallel:
    model = model or toy_model(family, dtype=dtype)
    names = toy_targets(model)
    with torch.no_grad():  # zeros of either sign, which adding and subtracting would not give back
        for name in names:
            model.get_parameter(name)[0, :2] = torch.tensor([0.0, -0.0])
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, **options)
    return MendParallel(model, tokenizer, toy_hparams(names), network=network)


def replayed(base: dict[str, Tensor], changes: Sequence[Updates]) -> dict[str, Tensor]:
    """The weights `base` with `changes` written into them, one after the other."""
    result = {name: weight.clone() for name, weight in base.items()}
    for updates in changes:
        for name, update in updates.items():
            update.write(result[name], transposed=False)
    return result


# --- wholly or not at all


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True], ids=["before-writing", "after-writing"])
@pytest.mark.parametrize("k", range(9))
def test_an_edit_that_breaks_at_any_commit_changes_nothing(
    k: int, after: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = editor_of()
    before = weights(editor.model)

    with monkeypatch.context() as patch:
        breaks = Breaks(patch, ResidentStaged, "commit", k, error, after)
        with pytest.raises(error, match="on purpose"):
            editor.edit(REQUESTS)
        assert breaks.calls == k + 1

    assert_unchanged(editor.model, before)
    rollback_all(editor.model)  # nothing is recorded
    assert_unchanged(editor.model, before)
    result = editor.edit(REQUESTS)  # and the lock is free
    name = editor.targets[k].name
    assert not same_bits(weights(editor.model)[name], before[name])
    result.rollback()
    assert_unchanged(editor.model, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_edit_that_breaks_leaves_the_edits_before_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = editor_of(dtype=dtype)
    base = weights(editor.model)
    first = editor.edit(REQUEST)
    edited = weights(editor.model)

    with monkeypatch.context() as patch:
        Breaks(patch, ResidentStaged, "commit", 4, KeyboardInterrupt, after=True)
        with pytest.raises(KeyboardInterrupt):
            editor.edit(REQUESTS)

    assert_unchanged(editor.model, edited)
    assert first.entry.applied
    first.rollback()
    assert_unchanged(editor.model, base)


@pytest.mark.parametrize("k", range(9))
def test_an_edit_whose_staging_breaks_changes_nothing(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = editor_of()
    before = weights(editor.model)

    with monkeypatch.context() as patch:
        made = itertools.count()
        original = ResidentStaged.__init__

        def out_of_memory(staged: ResidentStaged, *args: Any) -> None:
            if next(made) == k:
                raise torch.OutOfMemoryError
            original(staged, *args)

        patch.setattr(ResidentStaged, "__init__", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            editor.edit(REQUESTS)

    assert_unchanged(editor.model, before)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_edit_whose_losses_after_it_break_changes_nothing(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = editor_of()
    before = weights(editor.model)
    original, calls = Batch.call, itertools.count()

    def call(batch: Batch, model: nn.Module) -> Any:
        if next(calls) == 1:
            raise error
        return original(batch, model)

    monkeypatch.setattr(Batch, "call", call)
    with pytest.raises(error):
        editor.edit(REQUEST, losses_after=True)

    assert_unchanged(editor.model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("k", range(1, 5))
def test_an_undo_from_the_middle_that_breaks_changes_nothing(
    k: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = three_layers()
    ledger = Ledger.of(model)
    entries = [ledger.change(targets, some_updates(targets, seed)) for seed in range(3)]
    edited = weights(model)

    with monkeypatch.context() as patch:
        # while what came later is added again
        Breaks(patch, ResidentStaged, "commit", k, error, after=True)
        with pytest.raises(error):
            entries[0].undo()

    assert_unchanged(model, edited)
    assert [entry.applied for entry in entries] == [True] * 3
    expected = replayed(entries[0].before(), [entry._record.updates for entry in entries[1:]])
    entries[0].undo()
    assert_unchanged(model, expected)


@pytest.mark.parametrize("place", [0, 1], ids=["middle", "last"])
@pytest.mark.parametrize("after", [False, True], ids=["before-restoring", "after-restoring"])
@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_undo_that_breaks_at_any_weight_changes_nothing(
    place: int, after: bool, k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = three_layers()
    model.to(dtype)
    ledger = Ledger.of(model)
    entries = [ledger.change(targets, some_updates(targets, seed)) for seed in range(2)]
    edited = weights(model)

    with monkeypatch.context() as patch:
        Breaks(patch, ResidentStaged, "undo", k, KeyboardInterrupt, after)
        with pytest.raises(KeyboardInterrupt):
            entries[place].undo()

    assert_unchanged(model, edited)
    assert entries[place].applied


def test_an_undo_that_broke_off_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = three_layers()
    base = weights(model)
    entry = Ledger.of(model).change(targets, some_updates(targets, 0))

    with monkeypatch.context() as patch:
        Breaks(patch, ResidentStaged, "undo", 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            entry.undo()
    assert entry.applied

    entry.undo()
    assert_unchanged(model, base)


def test_an_undo_of_all_edits_that_breaks_off_once_is_finished_before_it_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, targets = three_layers()
    base = weights(model)
    entry = Ledger.of(model).change(targets, some_updates(targets, 0))

    with monkeypatch.context() as patch:
        Breaks(patch, ResidentStaged, "undo", 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            Ledger.of(model).undo_all()

    assert_unchanged(model, base)
    assert not entry.applied


@pytest.mark.parametrize("what", ["nan-rate", "inf-rate", "nan-statistics-of-one-shape"])
def test_an_update_that_is_not_finite_is_refused_by_name_and_changes_nothing(what: str) -> None:
    editor = editor_of()
    first = editor.edit(REQUEST)
    before = weights(editor.model)
    names = [target.name for target in editor.targets]
    with torch.no_grad():
        if what.endswith("rate"):
            editor.network.edit_lrs[4] = float(what.removesuffix("-rate"))
            bad = [names[4]]
        else:
            editor.network.get_buffer("mend.(24, 16).u_mean")[3] = float("nan")
            bad = [name for name in names if "down_proj" in name]

    with pytest.raises(UpdateError) as caught:
        editor.edit(REQUESTS)

    assert [name for name in names if name in str(caught.value)] == bad
    assert_unchanged(editor.model, before)
    assert first.entry.applied


@pytest.mark.parametrize("too_large", ["update", "sum"])
def test_what_float16_cannot_hold_is_refused_by_name_and_changes_nothing(too_large: str) -> None:
    model, targets = three_layers()
    model.half()
    updates = some_updates(targets, 0)
    if too_large == "update":
        updates["1.weight"].values.mul_(1e6)
    else:  # each of the two fits alone
        updates["1.weight"].values.mul_(1e4)
        with torch.no_grad():
            model.get_parameter("1.weight").fill_(65000.0)
    before = weights(model)

    with pytest.raises(UpdateError, match=r"1\.weight could exceed what float16 holds"):
        Ledger.of(model).change(targets, updates)

    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite_rows_whose_product_overflows_are_refused(dtype: torch.dtype) -> None:
    model, targets = three_layers()
    model.to(dtype)
    before = weights(model)
    updates = some_updates(targets, 0)
    updates["1.weight"].values.mul_(1e25)
    updates["1.weight"].keys.mul_(1e25)

    with pytest.raises(UpdateError, match=r"1\.weight"):
        Ledger.of(model).change(targets, updates)

    assert_unchanged(model, before)


# --- out again, to the bit


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rollback_gives_back_every_bit(family: str, dtype: torch.dtype) -> None:
    editor = editor_of(family, dtype)
    before = weights(editor.model)

    result = editor.edit(REQUESTS)

    now = weights(editor.model)
    for target in editor.targets:
        assert not same_bits(now.pop(target.name), before[target.name])
        assert same_bits(result.entry.before()[target.name], before[target.name])
    assert_unchanged(editor.model, {name: before[name] for name in now})  # no other weight
    result.rollback()
    assert_unchanged(editor.model, before)
    assert not result.entry.applied
    assert result.entry.before() == {}


def test_tied_weights_stay_tied_and_come_back() -> None:
    model = toy_model("gpt2", tied=True)
    editor = editor_of(model=model)
    before = weights(model)
    result = editor.edit(REQUEST)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    result.rollback()
    assert_unchanged(model, before)


def test_rolling_back_twice_does_nothing_the_second_time() -> None:
    editor = editor_of()
    before = weights(editor.model)
    first = editor.edit(REQUEST)
    first.rollback()
    first.rollback()
    assert_unchanged(editor.model, before)

    second = editor.edit(REQUESTS)
    edited = weights(editor.model)
    first.rollback()
    assert_unchanged(editor.model, edited)
    assert second.entry.applied


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rolling_back_from_the_middle_leaves_exactly_the_other_edits(dtype: torch.dtype) -> None:
    editor = editor_of(dtype=dtype)
    base = weights(editor.model, [target.name for target in editor.targets])
    results = [editor.edit(request) for request in (REQUESTS[1], REQUESTS[0], REQUESTS[2])]

    results[1].rollback()
    assert_unchanged(editor.model, replayed(base, [results[0].updates, results[2].updates]))
    results[0].rollback()
    assert_unchanged(editor.model, replayed(base, [results[2].updates]))
    results[2].rollback()
    assert_unchanged(editor.model, base)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_changes_of_overlapping_weights_come_out_in_any_order(
    order: tuple[int, ...], dtype: torch.dtype
) -> None:
    model, targets = three_layers()
    model.to(dtype)
    base = weights(model)
    subsets = ([0, 1], [1, 2], [0, 1, 2])
    changes = [
        some_updates([targets[place] for place in places], seed)
        for seed, places in enumerate(subsets)
    ]
    entries = [Ledger.of(model).change(targets, updates) for updates in changes]
    assert_unchanged(model, replayed(base, changes))

    left = list(range(3))
    for which in order:
        entries[which].undo()
        left.remove(which)
        assert_unchanged(model, replayed(base, [changes[one] for one in left]))
    assert_unchanged(model, base)


@pytest.mark.parametrize("seed", range(40))
def test_any_history_of_edits_undos_and_lost_handles_is_what_replaying_it_gives(seed: int) -> None:
    chance = random.Random(seed)
    model, targets = three_layers()
    model.to(chance.choice(DTYPES))
    base, ledger = weights(model), Ledger.of(model)
    changes: dict[int, Updates] = {}  # what is in the model, in order
    held: dict[int, Entry] = {}

    for step in range(25):
        action = chance.choice(["change", "change", "undo", "let go", "fail", "undo all"])
        if action == "undo all" and chance.random() < 0.7:
            continue
        if action in ("change", "fail"):
            some = chance.sample(targets, chance.randint(1, 3))
            updates = some_updates(some, 1000 * seed + step)
            if action == "change":
                entry = ledger.change(targets, updates)
                changes[step] = updates
                if chance.random() < 0.5:
                    held[step] = entry
                del entry
            else:
                with pytest.MonkeyPatch.context() as patch:
                    Breaks(patch, ResidentStaged, "commit", len(some) - 1, after=True)
                    with pytest.raises(KeyboardInterrupt):
                        ledger.change(targets, updates)
        elif action == "undo" and held:
            which = chance.choice(list(held))
            held.pop(which).undo()
            changes.pop(which, None)
        elif action == "let go" and held:
            held.pop(chance.choice(list(held)))
        elif action == "undo all":
            ledger.undo_all()
            changes.clear()
        assert_unchanged(model, replayed(base, list(changes.values())))
        assert all(entry.applied == (which in changes) for which, entry in held.items())

    ledger.undo_all()
    assert_unchanged(model, base)


def test_rollback_all_takes_out_the_edits_of_every_editor() -> None:
    one = editor_of()
    names = [target.name for target in one.targets][:4]
    model, tokenizer = one.model, one.tokenizer
    other_network = toy_network(model, tokenizer, names, combine=False, seed=5)
    other = MendParallel(model, tokenizer, toy_hparams(names), network=other_network)
    before = weights(model)

    results = [one.edit(REQUEST), other.edit(REQUESTS[1]), one.edit(REQUESTS)]
    middle = results[1].updates
    one.edit(REQUESTS[2])  # nobody holds this one
    assert set(middle) == set(names)
    other.rollback_all()

    assert_unchanged(model, before)
    assert not any(result.entry.applied for result in results)
    for result in results:
        result.rollback()
    rollback_all(model)
    assert_unchanged(model, before)


def test_rollback_of_one_editor_leaves_the_later_edit_of_the_other() -> None:
    one = editor_of()
    model, tokenizer = one.model, one.tokenizer
    names = [target.name for target in one.targets]
    other_network = toy_network(model, tokenizer, names, seed=5)
    other = MendParallel(model, tokenizer, toy_hparams(names), network=other_network)
    base = weights(model, names)

    first = one.edit(REQUEST)
    second = other.edit(REQUESTS[1])
    first.rollback()

    assert_unchanged(model, replayed(base, [second.updates]))


def test_rollback_all_of_a_model_that_was_never_edited_does_nothing() -> None:
    model = toy_model("llama")
    before = weights(model)
    rollback_all(model)
    assert_unchanged(model, before)


def test_two_models_have_each_their_own_history() -> None:
    one, other = editor_of(), editor_of(model=toy_model("llama", seed=9))
    before = weights(one.model), weights(other.model)
    result = one.edit(REQUEST)
    assert_unchanged(other.model, before[1])
    edited = weights(one.model)
    other.edit(REQUEST)
    other.rollback_all()
    assert_unchanged(other.model, before[1])
    assert_unchanged(one.model, edited)
    result.rollback()
    assert_unchanged(one.model, before[0])
    assert Ledger.of(one.model) is not Ledger.of(other.model)
    assert Ledger.of(one.model) is Ledger.of(one.model)


def test_a_copy_of_an_edited_model_has_no_history_of_its_own() -> None:
    editor = editor_of()
    before = weights(editor.model)
    result = editor.edit(REQUEST)
    twin = copy.deepcopy(editor.model)
    edited = weights(twin)

    rollback_all(twin)
    assert_unchanged(twin, edited)
    result.rollback()
    assert_unchanged(twin, edited)
    assert_unchanged(editor.model, before)


# --- weights that went elsewhere meanwhile


def test_rollback_reaches_weights_that_became_new_parameters() -> None:
    editor = editor_of()
    before = weights(editor.model)
    results = [editor.edit(REQUEST), editor.edit(REQUESTS[1])]
    for target in editor.targets:
        layer: Any = target.layer(editor.model)
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)

    results[0].rollback()
    base = {target.name: before[target.name] for target in editor.targets}
    assert_unchanged(editor.model, replayed(base, [results[1].updates]))
    results[1].rollback()
    assert_unchanged(editor.model, before)


def test_rollback_after_a_cast_gives_the_cast_of_the_first_bits() -> None:
    editor = editor_of()
    before = weights(editor.model)
    result = editor.edit(REQUEST)
    editor.model.to(torch.bfloat16)
    result.rollback()
    assert_unchanged(editor.model, {name: weight.bfloat16() for name, weight in before.items()})


@pytest.mark.parametrize("place", [0, 1], ids=["middle", "last"])
def test_rollback_reaches_weights_that_were_offloaded_meanwhile(place: int) -> None:
    editor = editor_of()
    before = weights(editor.model)
    results = [editor.edit(REQUEST), editor.edit(REQUESTS[1])]
    cpu_offload(editor.model, execution_device=torch.device("cpu"))

    results[place].rollback()
    rollback_all(editor.model)

    remove_hook_from_submodules(editor.model)
    assert_unchanged(editor.model, before)
    assert not any(result.entry.applied for result in results)


# --- what nobody can ask for is forgotten


class Backups:
    """Counts the backups that are alive, from the moment it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._refs: list[weakref.ref[Tensor]] = []
        original = ResidentStaged.__init__

        def counted(staged: ResidentStaged, *args: Any) -> None:
            original(staged, *args)
            assert staged.before is not None
            self._refs.append(weakref.ref(staged.before))

        monkeypatch.setattr(ResidentStaged, "__init__", counted)

    def alive(self) -> int:
        """Without gc.collect(): they go at once, not when cycles are looked for."""
        return sum(ref() is not None for ref in self._refs)

    def made(self) -> int:
        return len(self._refs)


def test_backups_of_edits_that_nobody_holds_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    editor = editor_of()
    before = weights(editor.model)
    backups, n = Backups(monkeypatch), len(editor.targets)
    alive = []

    for number in range(50):
        if number == 49:
            edited = weights(editor.model)
        last = editor.edit(OBSERVED[number % len(OBSERVED)])
        alive.append(backups.alive())

    assert backups.made() == 50 * n
    # the base, the last, and the one that `last` still held while the next was made
    assert max(alive) <= 3 * n
    assert alive[-1] == alive[3]
    assert len(Ledger.of(editor.model)._records) <= 2
    last.rollback()
    assert_unchanged(editor.model, edited)
    editor.rollback_all()
    assert_unchanged(editor.model, before)
    assert backups.alive() <= n  # only what `last` holds


def test_who_holds_a_handle_keeps_its_backup_and_can_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, targets = three_layers()
    base, ledger = weights(model), Ledger.of(model)
    backups, held, changes = Backups(monkeypatch), {}, {}
    for number in range(30):
        changes[number] = some_updates(targets, number)
        entry = ledger.change(targets, changes[number])
        if number in (7, 19):
            held[number] = entry
    del entry
    assert backups.alive() <= len(targets) * (len(held) + 3)  # base, last, the one before it

    for number, entry in held.items():
        entry.undo()
        del changes[number]
        assert_unchanged(model, replayed(base, list(changes.values())))
    ledger.undo_all()
    assert_unchanged(model, base)


def test_memory_stays_flat_behind_an_old_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = three_layers()
    ledger, backups = Ledger.of(model), Backups(monkeypatch)
    oldest = ledger.change(targets, some_updates(targets, 0))
    for number in range(1, 40):
        ledger.change(targets, some_updates(targets, number))
    assert backups.alive() <= 3 * len(targets)
    assert oldest.applied


def test_the_first_bits_of_each_weight_are_kept_whoever_changed_it_when() -> None:
    model, targets = three_layers()
    base, ledger = weights(model), Ledger.of(model)
    for number, places in enumerate(([0], [0, 1], [1], [2], [0], [2], [1])):
        ledger.change(targets, some_updates([targets[place] for place in places], number))
    ledger.undo_all()
    assert_unchanged(model, base)


def test_a_deleted_model_is_freed_though_results_are_held() -> None:
    editor = editor_of()
    result, entry = editor.edit(REQUEST), editor.edit(REQUESTS).entry
    model = weakref.ref(editor.model)
    weight = weakref.ref(editor.model.get_parameter(editor.targets[0].name))

    del editor
    gc.collect()

    assert model() is None
    assert weight() is None
    assert not result.entry.applied
    result.rollback()  # of nothing, without complaint
    entry.undo()
    assert entry.before() == {}


def test_a_deleted_model_takes_its_ledger_and_backups_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backups = Backups(monkeypatch)
    editor = editor_of()
    ledger = weakref.ref(Ledger.of(editor.model))
    editor.edit(REQUEST)
    del editor
    gc.collect()
    assert ledger() is None
    assert backups.alive() == 0


def test_a_ledger_of_a_deleted_model_says_so() -> None:
    model, targets = three_layers()
    ledger = Ledger.of(model)
    del model
    gc.collect()
    with pytest.raises(UpdateError, match="no longer exists"):
        ledger.change(targets, some_updates(targets, 0))


def test_a_network_made_for_other_targets_is_refused() -> None:
    model = toy_model("llama")
    names = toy_targets(model)
    network = toy_network(model, tokenizer_for(model), names[:3])

    with pytest.raises(TargetError, match=r"differ in model\.layers\.4"):
        MendParallel(model, tokenizer_for(model), toy_hparams(names), network=network)


def test_one_tied_weight_under_two_names_is_refused() -> None:
    model = toy_model("llama")
    model.model.layers[5].mlp.up_proj.weight = model.model.layers[4].mlp.up_proj.weight

    with pytest.raises(TargetError, match="one tied weight"):
        find_targets(model, toy_targets(model))
