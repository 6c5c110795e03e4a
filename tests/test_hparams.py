"""EasyEdit's own MEND files are read as they are, and what is wrong in a file is said all at once;
the files that come with this package are read by the class that they are for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import NETWORK_FIELDS

from easyedit_mend_parallel import (
    HparamsError,
    MENDParallelHyperParams,
    MENDParallelTrainingHparams,
)
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.training.metrics import selection_value

OURS = Path(__file__).parent.parent / "hparams"
MULTIMODAL = {"blip2", "blip2-vision", "minigpt4", "llavaov-7b", "qwen2vl-7b", "qwen3vl-4b"}
CLASSES = [MENDParallelHyperParams, MENDParallelTrainingHparams]

LEAST: dict[str, Any] = {
    "alg_name": "MEND",
    "model_name": "gpt2",
    "inner_params": ["transformer.h.11.mlp.c_fc.weight"],
    "archive": None,
    "rank": 1920,
    "edit_lr": 1e-4,
    **NETWORK_FIELDS,
}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in LEAST.items() if name not in names}


def written(tmp_path: Path, values: Any, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


# --- what is read


@pytest.mark.parametrize("cls", CLASSES)
def test_the_least_file_is_read(cls: type[MendHparams], tmp_path: Path) -> None:
    hparams = cls.from_hparams(written(tmp_path, LEAST))
    assert type(hparams) is cls
    assert hparams.inner_params == LEAST["inner_params"]
    assert (hparams.lr_scale, hparams.model_kwargs, hparams.network_device) == (1.0, None, None)
    config = hparams.network_config()
    assert (config.rank, config.n_hidden, config.edit_lr) == (1920, 1, 1e-4)


def test_a_name_with_two_values_is_refused_where_they_differ(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST)
    least = path.read_text(encoding="utf-8")
    for twice, accepted in (
        ("lr: 1.0e-4\nlr: 1.0e-4\n", True),
        ("lr: 1.0e-4\nlr: 1.0e-5\n", False),
    ):
        path.write_text(least + twice, encoding="utf-8")
        if accepted:
            assert MENDParallelHyperParams.from_hparams(path).lr == 1e-4
        else:
            with pytest.raises(HparamsError, match=r"lr has two values(.|\n)*line"):
                MENDParallelHyperParams.from_hparams(path)


@pytest.mark.parametrize("again", ["1e-4", "1e-5"])
def test_the_same_in_json(again: str, tmp_path: Path) -> None:
    path = tmp_path / "hparams.json"
    least = json.dumps(yaml.safe_load(written(tmp_path, LEAST).read_text(encoding="utf-8")))
    path.write_text(f'{least[:-1]}, "lr": 1e-4, "lr": {again}}}', encoding="utf-8")
    if again == "1e-4":
        assert MENDParallelHyperParams.from_hparams(path).lr == 1e-4
    else:
        with pytest.raises(HparamsError, match="lr has two values"):
            MENDParallelHyperParams.from_hparams(path)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_floats_that_yaml_reads_as_strings_are_floats(text: str, tmp_path: Path) -> None:
    rest = yaml.safe_dump(without("edit_lr"))
    path = written(tmp_path, f"{rest}edit_lr: {text}\nlr: 1e-6\ngrad_clip: 100\ndropout: null\n")
    hparams = MENDParallelHyperParams.from_hparams(path)
    assert hparams.edit_lr == 1e-4
    assert hparams.lr == 1e-6
    assert hparams.dropout is None
    for value in (hparams.edit_lr, hparams.lr, hparams.grad_clip):
        assert type(value) is float


@pytest.mark.parametrize("name", ["mine", "llama3.2-1b", "mine.v2"])
@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_the_ending_yaml_may_be_left_off(name: str, as_text: bool, tmp_path: Path) -> None:
    path = written(tmp_path, LEAST, name + ".yaml")
    for given in (path, path.with_name(name)):
        hparams = MENDParallelHyperParams.from_hparams(str(given) if as_text else given)
        assert hparams.rank == 1920


def test_json_and_yml_are_read_too(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST, "a.yml")
    assert MENDParallelHyperParams.from_hparams(path).rank == 1920
    path = tmp_path / "a.json"
    path.write_text(json.dumps(LEAST))
    assert MENDParallelHyperParams.from_hparams(path).rank == 1920


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "names",
    [
        {"alg": "MEND"},
        {"alg_name": "MEND"},
        {"alg": "MEND_PARALLEL"},
        {"alg_name": "MEND_PARALLEL"},
        {"alg": "MEND", "alg_name": "MEND"},
        {"alg": "MEND_PARALLEL", "alg_name": "MEND"},
        {"alg": "MEND_PARALLEL", "alg_name": "MEND_PARALLEL"},
    ],
    ids=str,
)
def test_either_name_of_the_method_or_both_are_read_and_both_are_set(
    cls: type[MendHparams], names: dict[str, str], tmp_path: Path
) -> None:
    hparams = cls.from_hparams(written(tmp_path, without("alg_name") | names))
    assert (hparams.alg, hparams.alg_name) == ("MEND_PARALLEL", "MEND_PARALLEL")


def test_what_was_read_goes_through_a_dictionary_and_back(tmp_path: Path) -> None:
    values = LEAST | {"model_kwargs": {"device_map": "auto"}, "lr_scale": 0.5, "device": "cuda:1"}
    hparams = MENDParallelHyperParams.from_hparams(written(tmp_path, values))
    again = MENDParallelHyperParams(**hparams.to_dict())
    assert again == hparams
    assert again.model_kwargs == {"device_map": "auto"}


def test_options_of_the_network_reach_it(tmp_path: Path) -> None:
    options = {
        "combine": False,
        "one_sided": True,
        "shared": False,
        "norm": False,
        "init": "xavier",
        "n_hidden": 2,
        "rank": 7,
        "lr_scale": 0.5,
        "edit_lr": 3e-3,
    }
    path = written(tmp_path, LEAST | options)
    config = MENDParallelHyperParams.from_hparams(path).network_config()
    assert {name: getattr(config, name) for name in options} == options


# --- what is refused


def refusal(tmp_path: Path, values: Any, cls: type[MendHparams] = MENDParallelHyperParams) -> str:
    path = written(tmp_path, values)
    with pytest.raises(HparamsError) as caught:
        cls.from_hparams(path)
    return str(caught.value)


def test_all_that_is_wrong_is_said_at_once_with_the_file(tmp_path: Path) -> None:
    values = without("model_name", "archive") | {"frobnicate": 1, "n_hidden": "one"}
    values |= {"shard": values.pop("shared")}
    says = refusal(tmp_path, values)
    for part in (
        str(tmp_path / "mine.yaml"),
        "unknown key 'shard'; did you mean 'shared'?",
        "unknown key 'frobnicate'",
        "missing key 'model_name'",
        "missing key 'archive'",
        "n_hidden is 'one', not a int",
    ):
        assert part in says
    assert "'frobnicate'; did" not in says


@pytest.mark.parametrize("name", ["model_name", "archive"])
def test_every_key_without_a_default_is_missed_by_name(name: str, tmp_path: Path) -> None:
    assert f"missing key '{name}'" in refusal(tmp_path, without(name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shared", "yes please"),
        ("shared", 1),
        ("n_hidden", 1.5),
        ("n_hidden", True),
        ("edit_lr", "fast"),
        ("edit_lr", [1e-4]),
        ("edit_lr", True),
        ("init", 3),
        ("batch_size", "4"),
        ("max_iters", "many"),
        ("tokenizer_name", 5),
        ("silent", "no"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(name: str, value: Any, tmp_path: Path) -> None:
    assert f"{name} is {value!r}, not a" in refusal(tmp_path, LEAST | {name: value})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mlp_class": "MLP"}, "mlp_class is 'MLP'"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": -3}, "rank is -3"),
        ({"init": "ortho"}, "init is 'ortho'; it has to be 'id' or 'xavier'"),
        ({"one_sided": True}, "combine: true"),
        ({"x_only": True}, "combine: true"),
        ({"delta_only": True}, "combine: true"),
        ({"inner_params": []}, "inner_params is"),
        ({"inner_params": "a.weight"}, "inner_params is 'a.weight'"),
        ({"model_kwargs": "auto"}, "model_kwargs is 'auto'"),
        ({"alg_name": "ROME"}, "alg_name is 'ROME'"),
        ({"alg": "SERAC"}, "alg is 'SERAC'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", CLASSES)
def test_what_cannot_be_built_is_refused(
    cls: type[MendHparams], values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refusal(tmp_path, LEAST | values, cls)


def test_two_sides_may_be_narrowed_where_they_are_not_combined(tmp_path: Path) -> None:
    for name in ("one_sided", "x_only", "delta_only"):
        path = written(tmp_path, LEAST | {"combine": False, name: True})
        assert getattr(MENDParallelHyperParams.from_hparams(path), name) is True


def test_a_file_that_names_no_method_is_refused(tmp_path: Path) -> None:
    assert "names no method" in refusal(tmp_path, without("alg_name"))


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just words", "a: [1, 2\n", "a: b: c\n", "\tx: 1\n"]
)
def test_a_file_that_is_no_mapping_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    assert str(tmp_path / "mine.yaml") in refusal(tmp_path, text)


@pytest.mark.parametrize("key", [1, True, 2.5, None], ids=str)
def test_a_key_that_is_no_string_is_refused(key: Any, tmp_path: Path) -> None:
    assert f"unknown key {key!r}" in refusal(tmp_path, {**LEAST, key: 1})


def test_a_missing_file_is_refused_by_its_whole_name(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match=r"nowhere\.yaml"):
        MENDParallelHyperParams.from_hparams(tmp_path / "nowhere")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    text = yaml.safe_dump(LEAST) + f"debug: !!python/object/apply:os.system ['touch {marker}']\n"
    refusal(tmp_path, text)
    assert not marker.exists()


# --- the files of this package


def ours(part: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((OURS / part).glob("*.yaml"))]


SPLIT = "-fsdp2"
"""The end of the name of a file for training over several processes that hold one model."""


def loads_as_it_says(path: Path, cls: type[MendHparams]) -> MendHparams:
    hparams = cls.from_hparams(path)
    values = yaml.safe_load(path.read_text())
    assert type(hparams) is cls
    for name, value in values.items():
        if name not in ("alg", "alg_name"):
            got = getattr(hparams, name)
            assert got == (float(value) if isinstance(got, float) else value), name
    return hparams


def test_this_package_brings_files_for_editing_and_for_training() -> None:
    editing = {path.stem for path in (OURS / "MEND_PARALLEL").glob("*.yaml")}
    training = {path.stem for path in (OURS / "TRAINING" / "MEND_PARALLEL").glob("*.yaml")}
    assert {stem.removesuffix(SPLIT) for stem in training} == editing
    found = {path for path in OURS.rglob("*") if path.is_file()}
    assert len(found) == len(editing) + len(training), "a file that these tests do not read"
    assert {"llama-7b", "gpt2-xl", "t5-3B"} <= editing


@pytest.mark.parametrize("path", ours("MEND_PARALLEL"))
def test_our_file_for_editing_is_read(path: Path) -> None:
    loads_as_it_says(path, MENDParallelHyperParams)


@pytest.mark.parametrize("path", ours("TRAINING/MEND_PARALLEL"))
def test_our_file_for_training_is_read_and_trains_what_the_one_for_editing_edits(
    path: Path,
) -> None:
    training = loads_as_it_says(path, MENDParallelTrainingHparams)
    name = path.stem.removesuffix(SPLIT)
    editing = MENDParallelHyperParams.from_hparams(OURS / "MEND_PARALLEL" / name)
    assert training.archive is None
    assert selection_value(training, []) == 0  # `mend-parallel train` knows its early_stop_key
    assert training.inner_params == editing.inner_params
    assert training.network_config() == editing.network_config()
    assert training.model_name == editing.model_name


# --- the files of EasyEdit


def easyedit_files(part: str, multimodal: bool) -> list[Any]:
    home = os.environ.get("EASYEDIT_HOME")
    folder = Path(home or "", "hparams", part)
    if home is None or not folder.is_dir():
        reason = "EASYEDIT_HOME does not name a clone of EasyEdit"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(path, id=path.stem)
        for path in sorted(folder.glob("*.yaml"))
        if (path.stem in MULTIMODAL) == multimodal
    ]


@pytest.mark.parametrize("path", easyedit_files("MEND", multimodal=False))
def test_easyedits_file_for_editing_a_text_model_is_read_as_it_is(path: Path) -> None:
    loads_as_it_says(path, MENDParallelHyperParams)


@pytest.mark.parametrize("path", easyedit_files("TRAINING/MEND", multimodal=False))
def test_easyedits_file_for_training_a_text_model_is_read_as_it_is(path: Path) -> None:
    loads_as_it_says(path, MENDParallelTrainingHparams)


@pytest.mark.parametrize("path", easyedit_files("MEND", multimodal=True))
def test_easyedits_file_for_editing_a_multimodal_model_is_refused(path: Path) -> None:
    with pytest.raises(HparamsError):
        MENDParallelHyperParams.from_hparams(path)


@pytest.mark.parametrize("path", easyedit_files("TRAINING/MEND", multimodal=True))
def test_easyedits_file_for_training_a_multimodal_model_is_refused(path: Path) -> None:
    with pytest.raises(HparamsError):
        MENDParallelTrainingHparams.from_hparams(path)
