"""EasyEdit's users change one name: BaseEditor edits with MEND_PARALLEL through each of its calls,
and undoes or keeps the edit as this EasyEdit does, to the bit. Each model has its own state."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from accelerate import dispatch_model
from easyeditor import BaseEditor, ZsreDataset
from host_toys import (
    KEPT,
    LOCALITY,
    ONE,
    TODAY,
    TWO,
    UNDONE,
    Toy,
    assert_same_edit,
    logits_of,
    make_toy,
    mixed_device_map,
    save_toy,
)

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelHyperParams,
    RequestError,
    rollback_all,
    save_archive,
)
from easyedit_mend_parallel.easyedit.method import Executor
from easyedit_mend_parallel.errors import WorseError

today = pytest.mark.skipif(not TODAY, reason="the release 0.0.1.dev0 does not have it")
release = pytest.mark.skipif(TODAY, reason="today's EasyEdit does not have it")


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


@pytest.fixture
def editor(toy: Toy, tmp_path: Path) -> Any:
    return BaseEditor.from_hparams(toy.hparams(tmp_path))


def requests(calls: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"prompt": prompt, "target_new": target}
        for prompt, target in zip(calls["prompts"], calls["target_new"], strict=True)
    ]


def own_edit(toy: Toy, calls: Mapping[str, Any], hparams: MENDParallelHyperParams) -> Any:
    """A copy of the toy's model, edited by this package without EasyEdit."""
    model = copy.deepcopy(toy.model)
    MendParallel(model, toy.tokenizer, hparams).edit(requests(calls))
    return model


def assert_edited_as(toy: Toy, edited: Any, expected: Any) -> None:
    assert_same_edit(edited, expected, toy.before, toy.names)


def test_a_yaml_of_mend_makes_an_editor_of_this_method(toy: Toy, tmp_path: Path) -> None:
    hparams = toy.hparams(tmp_path)

    editor = BaseEditor.from_hparams(hparams)

    assert (hparams.alg_name, editor.alg_name) == ("MEND_PARALLEL", "MEND_PARALLEL")
    assert isinstance(editor.apply_algo.__self__, Executor)
    assert editor.model is toy.model
    assert hparams.model_name is not editor.model_name == "llama"


# One edit


def test_an_edit_that_is_only_measured_is_gone_to_the_bit(toy: Toy, editor: Any) -> None:
    metrics, model, _ = editor.edit(**ONE, locality_inputs=copy.deepcopy(LOCALITY), **UNDONE)

    # It was in the model while it was measured: an unrelated answer differs.
    assert metrics[0]["post"]["locality"]["near_acc"] != [1.0]
    assert model is toy.model
    assert toy.changed() == set()


def test_a_kept_edit_changes_the_targets_and_weights_copy_undoes_it(toy: Toy, editor: Any) -> None:
    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert model is toy.model
    assert toy.changed() == set(toy.names)
    weights_copy()
    assert toy.changed() == set()
    weights_copy()
    assert toy.changed() == set()


def test_a_kept_edit_is_the_edit_of_the_package_without_easyedit(
    toy: Toy, editor: Any, tmp_path: Path
) -> None:
    expected = own_edit(toy, ONE, toy.hparams(tmp_path))

    _, model, _ = editor.edit(**ONE, **KEPT)

    assert_edited_as(toy, model, expected)


def test_metrics_come_back_for_each_request(editor: Any) -> None:
    metrics, _, _ = editor.edit(
        **TWO, rephrase_prompts=["Paris is the capital of", "Hamlet who wrote"], **UNDONE
    )

    assert [entry["requested_rewrite"]["prompt"] for entry in metrics] == TWO["prompts"]
    for entry in metrics:
        for phase in ("pre", "post"):
            assert len(entry[phase]["rewrite_acc"]) == len(entry[phase]["rephrase_acc"]) == 1


def test_edits_in_one_call_accumulate_where_they_are_kept(toy: Toy, editor: Any) -> None:
    _, _, last = editor.edit(**TWO, **KEPT)
    both = toys.weights(toy.model, toy.names)
    last()
    first = toys.weights(toy.model, toy.names)

    assert not any(torch.equal(both[name], first[name]) for name in toy.names)
    assert toy.changed() == set(toy.names)
    rollback_all(toy.model)
    assert toy.changed() == set()
    editor.edit(**ONE, **KEPT)
    toys.assert_unchanged(toy.model, first)


def test_rollback_all_undoes_many_edits_that_nobody_holds(toy: Toy, editor: Any) -> None:
    for _ in range(4):
        editor.edit(**TWO, **KEPT)
    assert toy.changed() == set(toy.names)

    rollback_all(toy.model)

    assert toy.changed() == set()


def test_an_edit_is_taken_back_from_under_later_ones(toy: Toy, editor: Any) -> None:
    _, _, first = editor.edit(**ONE, **KEPT)
    second_request = {name: values[1:] for name, values in TWO.items()}
    _, _, second = editor.edit(**second_request, **KEPT)

    first()

    assert toy.changed() == set(toy.names)
    second()
    assert toy.changed() == set()


@release
def test_the_release_keeps_an_edit_unless_it_is_told_to_keep_the_weights(
    toy: Toy, editor: Any
) -> None:
    editor.edit(**ONE, keep_original_weight=True)
    assert toy.changed() == set()

    editor.edit(**ONE, keep_original_weight=False)
    assert toy.changed() == set(toy.names)
    once = toys.weights(toy.model, toy.names)

    editor.edit(**ONE, keep_original_weight=True)
    toys.assert_unchanged(toy.model, once)


def test_a_request_that_cannot_be_edited_leaves_every_weight(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)
    once = toys.weights(toy.model)
    bad = [*requests(ONE), {"prompt": "who wrote Hamlet", "target_new": " "}]

    with pytest.raises(RequestError, match="target_new is empty"):
        editor.apply_algo(editor.model, editor.tok, bad, editor.hparams)

    toys.assert_unchanged(toy.model, once)
    weights_copy()
    assert toy.changed() == set()


# weights_copy


def test_weights_copy_holds_the_bits_from_before_until_it_is_called(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)

    assert issubclass(type(weights_copy), Mapping)
    assert set(weights_copy) == set(weights_copy.keys()) == set(toy.names)
    assert len(weights_copy) == len(toy.names)
    for name in toy.names:
        assert toys.same_bits(weights_copy[name], toy.before[name])
    assert toy.changed() == set(toy.names)
    with pytest.raises(KeyError):
        weights_copy["lm_head.weight"]
    weights_copy()
    assert (len(weights_copy), list(weights_copy)) == (len(toy.names), toy.names)
    assert all(toys.same_bits(weights_copy[name], toy.before[name]) for name in toy.names)


def test_looking_at_weights_copy_undoes_nothing(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)

    for name, bits in weights_copy.items():
        assert toys.same_bits(bits, toy.before[name])
    assert len(list(weights_copy.values())) == len(dict(weights_copy)) == len(toy.names)
    assert {**weights_copy}.keys() == weights_copy.copy().keys() == set(toy.names)
    assert isinstance(weights_copy, dict)
    assert toy.changed() == set(toy.names)


def test_saved_weights_copy_is_a_dictionary_of_tensors(
    toy: Toy, editor: Any, tmp_path: Path
) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)

    torch.save(weights_copy, tmp_path / "before.pt")

    loaded = torch.load(tmp_path / "before.pt", weights_only=True)
    assert type(loaded) is OrderedDict
    assert set(loaded) == set(copy.deepcopy(weights_copy)) == set(toy.names)
    assert all(toys.same_bits(loaded[name], toy.before[name]) for name in toy.names)
    assert toy.changed() == set(toy.names)


def test_weights_copy_cannot_be_changed(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)

    for change in (
        lambda: weights_copy.update({}),
        lambda: weights_copy.pop(toy.names[0]),
        lambda: weights_copy.__setitem__("a", torch.zeros(1)),
        weights_copy.clear,
    ):
        with pytest.raises(TypeError, match="weights_copy cannot be changed: call it"):
            change()


def test_after_a_measured_edit_weights_copy_has_the_weights(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **UNDONE)

    assert toy.changed() == set()
    assert len(weights_copy) == len(toy.names)
    assert all(toys.same_bits(bits, toy.before[name]) for name, bits in weights_copy.items())


def test_weights_that_a_script_copied_back_are_an_edit_undone(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)
    with torch.no_grad():
        for name, bits in weights_copy.items():
            toy.model.get_parameter(name).copy_(bits)

    _, _, second = editor.edit(**ONE, **KEPT)

    assert not weights_copy.result.entry.applied
    assert toy.changed() == set(toy.names)
    second()
    assert toy.changed() == set()


def test_comparing_weights_copy_changes_no_weight(toy: Toy, editor: Any) -> None:
    _, _, weights_copy = editor.edit(**ONE, **KEPT)

    assert weights_copy != {}
    assert weights_copy == weights_copy

    assert toy.changed() == set(toy.names)


def test_a_script_that_says_it_restores_loops_over_items_and_has_nothing_to_copy(
    toy: Toy, editor: Any
) -> None:
    _, weights_copy = editor.apply_algo(
        toy.model,
        toy.tokenizer,
        requests(ONE),
        editor.hparams,
        return_orig_weights=True,
        keep_original_weight=True,
    )

    assert toy.changed() == set(toy.names)
    assert list(weights_copy.items()) == []
    assert toy.changed() == set()


def test_weights_copy_is_empty_where_it_is_not_asked_for(toy: Toy, editor: Any) -> None:
    model, weights_copy = editor.apply_algo(
        toy.model, toy.tokenizer, requests(ONE), editor.hparams, return_orig_weights=False
    )

    assert (model, weights_copy) == (toy.model, {})
    assert toy.changed() == set(toy.names)


# Other calls of the editor


def test_a_batch_is_one_update_of_all_its_requests(toy: Toy, tmp_path: Path) -> None:
    hparams = toy.hparams(tmp_path, batch_size=2)
    expected = own_edit(toy, TWO, hparams)

    metrics, model, weights_copy = BaseEditor.from_hparams(hparams).batch_edit(**TWO, **KEPT)

    assert len(metrics) == 2
    assert_edited_as(toy, model, expected)
    weights_copy()
    assert toy.changed() == set()


def test_a_batch_that_is_only_measured_is_gone_to_the_bit(toy: Toy, tmp_path: Path) -> None:
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, batch_size=2))
    seen: list[set[str]] = []
    editor.apply_algo = watched(editor.apply_algo, lambda: seen.append(toy.changed()))

    editor.batch_edit(**TWO, **UNDONE)

    assert seen == [set(toy.names)]
    assert toy.changed() == set()


def watched(apply: Any, look: Any) -> Any:
    def and_look(*args: Any, **kwargs: Any) -> Any:
        result = apply(*args, **kwargs)
        look()
        return result

    return and_look


@today
@pytest.mark.parametrize("kept", [True, False])
def test_batches_that_were_only_measured_are_said_to_be(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    logging.disable(logging.NOTSET)
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, batch_size=1))

    editor.batch_edit(**TWO, sequential_edit=kept)

    said = [one.getMessage() for one in caplog.records if "sequential_edit=True" in one.message]
    assert len(said) == (0 if kept else 1)
    assert toy.changed() == (set(toy.names) if kept else set())


@today
def test_normal_edit_takes_the_edit_away_again(toy: Toy, editor: Any) -> None:
    seen: list[set[str]] = []
    editor.apply_algo = watched(editor.apply_algo, lambda: seen.append(toy.changed()))

    _, model, weights_copy = editor.normal_edit(TWO["prompts"], TWO["target_new"])

    assert seen == [set(toy.names)]
    assert model is toy.model
    assert toy.changed() == set()
    assert set(weights_copy) == set(toy.names)


@today
@pytest.mark.parametrize("kept", [True, False])
def test_generate_edit_measures_answers_and_keeps_the_edit_or_not(
    toy: Toy, tmp_path: Path, kept: bool
) -> None:
    toy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path))
    # EasyEdit asks for 512 tokens; here every token ends an answer.
    toy.model.generation_config.eos_token_id = list(range(len(toys.VOCABULARY)))

    answers, _, weights_copy = editor.generate_edit(
        **ONE,
        rephrase_prompts=["Paris is the capital of"],
        portability_inputs={"por_hop": {"prompt": [["water boils at"]], "ground_truth": [["a"]]}},
        sequential_edit=kept,
    )

    for phase in ("pre", "post"):
        assert isinstance(answers[0][phase]["rewrite_ans"], str)
        assert len(answers[0][phase]["portability_ans"]) == 1
    assert answers[0]["pre"]["rewrite_ans"] != answers[0]["post"]["rewrite_ans"]
    assert toy.changed() == (set(toy.names) if kept else set())
    weights_copy()
    assert toy.changed() == set()


@release
def test_edit_dataset_edits_record_by_record(toy: Toy, editor: Any) -> None:
    records = object.__new__(ZsreDataset)
    records._data = [
        {**request, "ground_truth": "a", "case_id": number}
        for number, request in enumerate(requests(TWO))
    ]

    editor.edit_dataset(records, keep_original_weight=True)
    assert toy.changed() == set()

    editor.edit_dataset(records)
    assert toy.changed() == set(toy.names)
    rollback_all(toy.model)
    assert toy.changed() == set()


# Whose model


def test_two_editors_edit_each_its_own_model(tmp_path: Path) -> None:
    one, other = make_toy(tmp_path), make_toy(tmp_path, seed=5)
    (tmp_path / "other").mkdir()
    first = BaseEditor.from_hparams(one.hparams(tmp_path))
    second = BaseEditor.from_hparams(other.hparams(tmp_path / "other"))
    alone = own_edit(one, ONE, first.hparams), own_edit(other, ONE, second.hparams)

    _, model, undo_first = first.edit(**ONE, **KEPT)
    assert model is one.model
    assert other.changed() == set()
    _, model, undo_second = second.edit(**ONE, **KEPT)
    assert model is other.model

    assert_edited_as(one, one.model, alone[0])
    assert_edited_as(other, other.model, alone[1])
    undo_first()
    assert (one.changed(), other.changed()) == (set(), set(other.names))
    undo_second()
    assert other.changed() == set()


def test_two_editors_of_one_model_share_its_history(toy: Toy, tmp_path: Path) -> None:
    first = BaseEditor.from_hparams(toy.hparams(tmp_path))
    second = BaseEditor.from_hparams(toy.hparams(tmp_path))

    first.edit(**ONE, **KEPT)
    second.edit(**TWO, **KEPT)
    rollback_all(toy.model)

    assert toy.changed() == set()


def test_a_deleted_model_is_freed_though_its_results_are_held(tmp_path: Path) -> None:
    toy = make_toy(tmp_path)
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path))
    metrics, model, weights_copy = editor.edit(**ONE, **KEPT)
    alive = weakref.ref(toy.model)
    assert model is alive()

    del toy, editor, model
    gc.collect()

    assert alive() is None
    assert (len(metrics), len(weights_copy)) == (1, 0)


def test_a_copy_is_edited_and_the_model_is_not(toy: Toy, editor: Any) -> None:
    edited, weights_copy = editor.apply_algo(
        toy.model, toy.tokenizer, requests(ONE), editor.hparams, copy=True, return_orig_weights=True
    )

    assert edited is not toy.model
    assert toy.changed() == set()
    assert not torch.equal(logits_of(edited), logits_of(toy.model))
    weights_copy()
    assert torch.equal(logits_of(edited), logits_of(toy.model))


# How the model comes


def test_a_pair_that_was_dispatched_is_edited_where_it_lies(toy: Toy, tmp_path: Path) -> None:
    hparams = toy.hparams(tmp_path)
    expected = own_edit(toy, ONE, hparams)
    device_map = mixed_device_map()
    dispatch_model(toy.model, device_map, offload_dir=str(tmp_path / "offload"))
    before = logits_of(toy.model)

    editor = BaseEditor.from_hparams(hparams)  # `.to()` would raise on offloaded weights
    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert model.hf_device_map == device_map
    assert model.get_parameter("model.layers.0.mlp.up_proj.weight").is_meta
    assert_edited_as(toy, model, expected)
    assert not torch.equal(logits_of(model), before)
    weights_copy()
    assert torch.equal(logits_of(model), before)


def test_a_pair_that_easyedit_calls_parallel_is_not_moved(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Any] = []
    monkeypatch.setattr(type(toy.model), "to", lambda *args, **_: moves.append(args[1:]))

    BaseEditor.from_hparams(toy.hparams(tmp_path, model_parallel=True))

    assert moves == []


def test_a_tokenizer_without_padding_comes_as_a_pair(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, tokenizer=toys.toy_tokenizer(pad=False))

    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, batch_size=2))
    metrics, _, _ = editor.batch_edit(**TWO, **UNDONE)

    assert len(metrics) == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_loaded_by_its_path_and_edited(tmp_path: Path, family: str) -> None:
    path, toy = save_toy(tmp_path, family)

    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, model_name=path))
    assert editor.model_name == path
    assert editor.tok.padding_side == "left"
    loaded = toys.weights(editor.model)
    toys.assert_unchanged(editor.model, toy.before)
    metrics, model, weights_copy = editor.edit(**ONE, locality_inputs=LOCALITY, **KEPT)

    assert type(model) is type(toy.model)
    assert "near_acc" in metrics[0]["post"]["locality"]
    now = toys.weights(model)
    assert {name for name in loaded if not torch.equal(now[name], loaded[name])} == set(toy.names)
    weights_copy()
    toys.assert_unchanged(model, loaded)


@today
def test_a_path_that_says_llama_is_loaded_and_edited(tmp_path: Path) -> None:
    toy = make_toy(tmp_path)
    path = tmp_path / "toy-llama"
    toy.model.save_pretrained(path)
    toy.tokenizer.save_pretrained(path)

    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, model_name=str(path)))
    editor.edit(**ONE, **KEPT)

    assert_edited_as(toy, editor.model, own_edit(toy, ONE, editor.hparams))


def test_an_edit_that_makes_things_worse_is_written_with_a_warning_unless_it_is_to_be_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """EasyEdit's loops over a data set expect no exception."""
    toy = make_toy(tmp_path)
    network = toys.downhill_network(toy.model, toy.tokenizer, toy.names)
    network.edit_lrs.data.mul_(-3)  # uphill
    save_archive(toy.archive, network, model_config=toy.model.config.to_dict())
    logging.disable(logging.NOTSET)
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, on_worse=None))
    with caplog.at_level(logging.WARNING, logger="easyedit_mend_parallel"):
        _, _, undo = editor.edit(**ONE, **KEPT)
    assert "less likely than before" in caplog.text
    assert toy.changed() == set(toy.names)
    undo()

    refusing = BaseEditor.from_hparams(toy.hparams(tmp_path, on_worse="refuse"))
    with pytest.raises(WorseError):
        refusing.edit(**ONE, **KEPT)
    assert toy.changed() == set()
