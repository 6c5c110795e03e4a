"""replace_mend(): EasyEdit's own name MEND runs the parallel-safe variant, with EasyEdit's own
hyperparameters, until restore_mend(); what is no text model, and what was made before, is left."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import easyeditor
import pytest
import torch
import toys
from easyeditor import BaseEditor, MENDHyperParams
from easyeditor.util import alg_dict
from easyeditor.util.alg_dict import ALG_DICT, ALG_MULTIMODAL_DICT
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT
from host_toys import (
    KEPT,
    LOCALITY,
    ONE,
    TODAY,
    TWO,
    UNDONE,
    Toy,
    assert_same_edit,
    make_toy,
    save_toy,
    write_yaml,
)

from easyedit_mend_parallel import (
    HparamsError,
    MendParallel,
    PlacementError,
    replace_mend,
    restore_mend,
    rollback_all,
)
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere
from easyedit_mend_parallel.easyedit.method import Executor
from easyedit_mend_parallel.easyedit.rollback import Rollback

ORIGINAL = ALG_DICT["MEND"]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


def host_hparams(toy: Toy, folder: Path, **values: Any) -> Any:
    """EasyEdit's own hyperparameters, read by EasyEdit, with the model as a pair."""
    path = write_yaml(folder / "easyedit.yaml", **toy.fields(**values))
    hparams = MENDHyperParams.from_hparams(path)
    if "model_name" not in values:
        hparams.model_name = toy.pair
    return hparams


def runs_ours(editor: Any) -> bool:
    return isinstance(getattr(editor.apply_algo, "__self__", None), Executor)


def test_easyedits_own_hyperparameters_and_name_run_this_method(toy: Toy, tmp_path: Path) -> None:
    expected = copy.deepcopy(toy.model)
    request = {"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}
    MendParallel(expected, toy.tokenizer, toy.hparams(tmp_path)).edit(request)
    replace_mend()
    hparams = host_hparams(toy, tmp_path)

    editor = BaseEditor.from_hparams(hparams)
    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert (editor.alg_name, hparams.alg_name, type(hparams)) == ("MEND", "MEND", MENDHyperParams)
    assert_same_edit(model, expected, toy.before, toy.names)
    weights_copy()
    assert toy.changed() == set()


def test_an_edit_under_easyedits_name_is_restored_by_easyedits_own_loop(
    toy: Toy, tmp_path: Path
) -> None:
    replace_mend()
    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path))

    metrics, _, weights_copy = editor.edit(**ONE, locality_inputs=copy.deepcopy(LOCALITY), **UNDONE)

    assert isinstance(weights_copy, Rollback)
    assert metrics[0]["post"]["locality"]["near_acc"] != [1.0]  # it was in the model meanwhile
    assert toy.changed() == set()


def test_batches_run_under_easyedits_name(toy: Toy, tmp_path: Path) -> None:
    replace_mend()
    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path, batch_size=2))

    metrics, _, weights_copy = editor.batch_edit(**TWO, **KEPT)

    assert len(metrics) == 2
    assert toy.changed() == set(toy.names)
    weights_copy()
    assert toy.changed() == set()


def test_a_batch_under_easyedits_name_is_solved_for_and_that_is_said_once(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    solved, summed = copy.deepcopy(toy.model), copy.deepcopy(toy.model)
    for model, how in ((solved, "least_squares"), (summed, "mean_loss")):
        fields = toy.hparams(tmp_path, aggregate=how)
        MendParallel(model, toy.tokenizer, fields).edit(
            [
                {"prompt": prompt, "target_new": target}
                for prompt, target in zip(TWO["prompts"], TWO["target_new"], strict=True)
            ]
        )
    logging.disable(logging.NOTSET)

    for options, expected in (({}, solved), ({"aggregate": "mean_loss"}, summed)):
        replace_mend(**options)
        editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path, batch_size=2))
        caplog.clear()
        for _ in range(2):
            _, model, weights_copy = editor.batch_edit(**TWO, **KEPT)
            assert_same_edit(model, expected, toy.before, toy.names)
            weights_copy()
        said = [record for record in caplog.records if "batches are combined" in record.message]
        assert len(said) == (0 if options else 1)


def test_two_models_under_easyedits_name_are_edited_each_by_its_own(tmp_path: Path) -> None:
    replace_mend()
    one, other = make_toy(tmp_path), make_toy(tmp_path, seed=5)
    first = BaseEditor.from_hparams(host_hparams(one, tmp_path))
    second = BaseEditor.from_hparams(host_hparams(other, tmp_path))

    assert first.edit(**ONE, **KEPT)[1] is one.model
    assert other.changed() == set()
    assert second.edit(**ONE, **KEPT)[1] is other.model
    assert other.changed() == set(other.names)


def test_options_apply_to_how_easyedit_loads_the_model(tmp_path: Path) -> None:
    path, toy = save_toy(tmp_path)
    replace_mend(model_kwargs={"dtype": "bfloat16", "attn_implementation": "eager"})

    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path, model_name=path))

    assert editor.model.dtype == torch.bfloat16
    assert editor.model.config._attn_implementation == "eager"
    _, model, _ = editor.edit(**ONE, **KEPT)
    assert model.dtype == torch.bfloat16


def test_options_are_hyperparameters_of_the_edit(toy: Toy, tmp_path: Path) -> None:
    replace_mend(network_device="nowhere")
    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path))

    with pytest.raises(PlacementError, match="'nowhere' is not a device"):
        editor.apply_algo(toy.model, toy.tokenizer, [toys.REQUEST], editor.hparams)

    assert toy.changed() == set()


def test_later_options_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    path, toy = save_toy(tmp_path)
    replace_mend(model_kwargs={"dtype": "bfloat16"})
    replace_mend()

    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path, model_name=path))

    assert editor.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_kwarg": {}}, "'model_kwarg' is not a hyperparameter; did you mean 'model_kwargs'"),
        ({"model_kwargs": "auto"}, "model_kwargs is 'auto'; it has to map"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HparamsError, match=message):
        replace_mend(**options)

    assert ALG_DICT["MEND"] is ORIGINAL


def test_restore_mend_gives_the_name_back_as_often_as_it_is_asked() -> None:
    restore_mend()
    assert ALG_DICT["MEND"] is ORIGINAL
    for _ in range(2):
        replace_mend()
        replace_mend()
        assert ALG_DICT["MEND"] is not ORIGINAL
        restore_mend()
        restore_mend()
        assert ALG_DICT["MEND"] is ORIGINAL


def test_after_restore_mend_easyedit_loads_and_edits_as_ever(tmp_path: Path) -> None:
    path, toy = save_toy(tmp_path)
    replace_mend(model_kwargs={"dtype": "bfloat16"})
    restore_mend()

    with cuda_elsewhere():  # as it does on a machine with CUDA, for the release
        editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path, model_name=path))

    assert editor.apply_algo is ORIGINAL
    assert editor.model.dtype == torch.float32


def test_an_editor_made_before_keeps_easyedits_own_mend(toy: Toy, tmp_path: Path) -> None:
    hparams = host_hparams(toy, tmp_path, model_name="llama")
    hparams.model_name = toy.pair
    with cuda_elsewhere():
        before = BaseEditor.from_hparams(hparams)
    replace_mend()
    after = BaseEditor.from_hparams(host_hparams(toy, tmp_path))

    assert before.apply_algo is ORIGINAL
    assert not runs_ours(before)
    assert runs_ours(after)


def test_an_editor_made_meanwhile_works_on_after_restore_mend(toy: Toy, tmp_path: Path) -> None:
    replace_mend()
    editor = BaseEditor.from_hparams(host_hparams(toy, tmp_path))
    restore_mend()

    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert isinstance(weights_copy, Rollback)
    assert (model, toy.changed()) == (toy.model, set(toy.names))
    rollback_all(model)
    assert toy.changed() == set()


def test_multimodal_and_personality_models_keep_easyedits_own() -> None:
    registries = [ALG_MULTIMODAL_DICT]
    if TODAY:
        registries.append(alg_dict.PER_ALG_DICT)
    before = [dict(registry) for registry in registries]

    replace_mend(model_kwargs={"dtype": "bfloat16"})

    assert [dict(registry) for registry in registries] == before


@pytest.mark.parametrize("registry", [ALG_DICT, ALG_TRAIN_DICT], ids=["editing", "training"])
def test_only_the_name_mend_changes_in_easyedits_registries(registry: dict[str, Any]) -> None:
    before = dict(registry)

    replace_mend()

    assert {name for name in before | registry if before[name] is not registry[name]} == {"MEND"}
    restore_mend()
    assert registry == before


OTHER_KINDS = ("MultimodalEditor", "PerEditor", "SafetyEditor", "ConceptEditor")
OTHER_KINDS += ("MultimodalTrainer", "PEREditTrainer")


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_editors_and_trainers_are_easyedits_own(kind: str) -> None:
    replace_mend()

    own = getattr(easyeditor, kind, None)
    if own is None:
        pytest.skip(f"this EasyEdit has no {kind}")
    functions = [one for one in vars(own).values() if callable(one)]
    assert functions
    for function in functions:
        assert function.__module__.startswith("easyeditor")
        assert not hasattr(function, "__wrapped__")


def test_what_easyedit_registers_is_its_own_but_for_our_method() -> None:
    for registry in (ALG_DICT, ALG_TRAIN_DICT, ALG_MULTIMODAL_DICT):
        for name, registered in registry.items():
            ours = registered.__module__.startswith("easyedit_mend_parallel")
            assert ours is (name == "MEND_PARALLEL"), name


def test_replace_mend_before_easyedit_is_imported_holds_after_it(found: dict[str, Any]) -> None:
    assert (found["mend"], found["mend_dtype"]) == ("Executor", "torch.bfloat16")
