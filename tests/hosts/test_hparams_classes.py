"""EasyEdit's own hyperparameter classes know this method's name: a script that calls them needs one
changed line in its yaml file. What they do with `MEND` and with other names is unchanged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import toys
from easyeditor import BaseEditor, EditTrainer, MENDHyperParams, MENDTrainingHparams, ZsreDataset
from host_toys import KEPT, ONE, TWO, UNDONE, Toy, assert_same_edit, make_toy, write_yaml
from toy_facts import ZSRE_RECORDS

from easyedit_mend_parallel import (
    HparamsError,
    MendParallel,
    MENDParallelHyperParams,
    MENDParallelTrainingHparams,
)
from easyedit_mend_parallel.easyedit.trainable import Trainable


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


def read_by_easyedit(toy: Toy, folder: Path, ending: str = ".yaml", **values: Any) -> Any:
    write_yaml(folder / "edit.yaml", **toy.fields(**values))
    hparams = MENDHyperParams.from_hparams(str(folder / "edit") + ending)
    hparams.model_name = toy.pair
    return hparams


def training_fields(folder: Path, **values: Any) -> dict[str, Any]:
    model = toys.toy_model("llama")
    path = folder / "tiny-llama"
    model.save_pretrained(path)
    toys.toy_tokenizer(side="left").save_pretrained(path)
    toy = Toy(model, None, toys.toy_targets(model), folder / "none", {})
    fields = toy.fields(
        archive=None,
        model_name=str(path),
        tokenizer_name=str(path),
        model_class=type(model).__name__,
        tokenizer_class="PreTrainedTokenizerFast",
        results_dir=str(folder / "results"),
        val_interval=1000,
        val_batch_size=2,
        val_steps=2,
        max_iters=9,
        lr=1e-3,
        lr_lr=1e-3,
    )
    for name in ("alg_name", "lr_scale", "max_length"):  # no fields of EasyEdit's for training
        del fields[name]
    return fields | values


@pytest.mark.parametrize("ending", [".yaml", ""])
def test_easyedits_class_reads_a_file_that_names_this_method(
    toy: Toy, tmp_path: Path, ending: str
) -> None:
    expected = copy.deepcopy(toy.model)
    request = {"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}
    MendParallel(expected, toy.tokenizer, toy.hparams(tmp_path)).edit(request)

    hparams = read_by_easyedit(toy, tmp_path, ending, alg_name="MEND_PARALLEL")
    assert type(hparams) is MENDParallelHyperParams
    _, model, _ = BaseEditor.from_hparams(hparams).edit(**ONE, **KEPT)

    assert_same_edit(model, expected, toy.before, toy.names)


def test_keys_of_this_package_are_read_from_such_a_file(toy: Toy, tmp_path: Path) -> None:
    hparams = read_by_easyedit(
        toy, tmp_path, alg_name="MEND_PARALLEL", alg="MEND_PARALLEL", apply="output"
    )

    assert hparams.apply == "output"


def test_a_key_that_is_wrong_in_such_a_file_is_named(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match=r"edit\.yaml: unknown key 'aply'; did you mean 'apply'"):
        read_by_easyedit(toy, tmp_path, alg_name="MEND_PARALLEL", aply="output")


def test_the_name_can_be_set_on_an_object_of_easyedits_class(toy: Toy, tmp_path: Path) -> None:
    expected = copy.deepcopy(toy.model)
    request = {"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}
    MendParallel(expected, toy.tokenizer, toy.hparams(tmp_path)).edit(request)
    hparams = MENDHyperParams.from_hparams(write_yaml(tmp_path / "mend.yaml", **toy.fields()))
    hparams.model_name, hparams.alg_name = toy.pair, "MEND_PARALLEL"
    editor = BaseEditor.from_hparams(hparams)

    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert type(hparams) is MENDHyperParams
    assert_same_edit(model, expected, toy.before, toy.names)
    weights_copy()
    hparams.batch_size = 2
    assert len(editor.batch_edit(**TWO, **UNDONE)[0]) == 2
    assert toy.changed() == set()


@pytest.mark.parametrize("on_object", [False, True], ids=["in the file", "on the object"])
def test_easyedits_training_class_trains_this_method(tmp_path: Path, on_object: bool) -> None:
    records = tmp_path / "zsre.json"
    records.write_text(json.dumps(ZSRE_RECORDS), encoding="utf-8")
    name = "MEND" if on_object else "MEND_PARALLEL"
    path = write_yaml(tmp_path / "train.yaml", **training_fields(tmp_path, alg=name))
    hparams = MENDTrainingHparams.from_hparams(path)
    if on_object:
        hparams.alg = "MEND_PARALLEL"
    expected = MENDTrainingHparams if on_object else MENDParallelTrainingHparams
    assert type(hparams) is expected

    data = ZsreDataset(str(records), config=hparams)
    trainer = EditTrainer(config=hparams, train_set=data, val_set=data)
    trainer.run()

    assert isinstance(trainer.model, Trainable)
    assert trainer.model.steps > 0


def test_files_that_name_mend_are_read_as_ever(toy: Toy, tmp_path: Path) -> None:
    class Derived(MENDHyperParams):  # type: ignore[misc]
        pass

    path = write_yaml(tmp_path / "mend.yaml", **toy.fields())
    training = write_yaml(tmp_path / "train.yaml", **training_fields(tmp_path, alg="MEND"))

    assert type(MENDHyperParams.from_hparams(path)) is MENDHyperParams
    assert type(MENDHyperParams.from_hparams(hparams_name_or_path=path)) is MENDHyperParams
    assert type(Derived.from_hparams(path)) is Derived
    assert type(MENDTrainingHparams.from_hparams(training)) is MENDTrainingHparams


def test_other_names_and_files_meet_easyedits_own_errors(toy: Toy, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "other.yaml", **toy.fields(alg="ROME", alg_name="ROME"))

    with pytest.raises((ValueError, AssertionError)) as found:
        MENDHyperParams.from_hparams(path)
    assert not isinstance(found.value, HparamsError)
    with pytest.raises(FileNotFoundError):
        MENDHyperParams.from_hparams(str(tmp_path / "missing.yaml"))
