"""Everything that would keep an edit from working is said before anything is loaded: all of it at
once, a sentence each, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_toys import Toy
from toys import toy_hparams

from easyedit_mend_parallel import HparamsError, MENDParallelHyperParams
from easyedit_mend_parallel.cli.plan import plan, read_max_memory


@pytest.fixture(autouse=True)
def _no_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)


@pytest.fixture
def llama(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def problem(config: Path, **how: Any) -> str:
    """The only problem of a file."""
    (only,) = plan(config, **how).problems
    return only


def test_every_problem_is_said_at_once(llama: Toy) -> None:
    where = llama.blocks_on(0, "cpu", "cpu", "cpu", "disk")
    where["model.nrom"] = where.pop("model.norm")
    config = llama.config(
        rnak=6,
        rank=4,
        apply="wieght",
        overlay_limit="much",
        inner_params=[*llama.targets[:-2], "model.layers.9.mlp.up_proj.weight", "lm_haed.weight"],
        model_kwargs={"device_map": where, "dtyp": "bfloat16"},
    )
    said = plan(config).problems
    for words in (
        "unknown key 'rnak'; did you mean 'rank'",
        "apply is 'wieght'",
        "overlay_limit is 'much'",
        "'dtyp' is no argument of from_pretrained; did you mean 'dtype'",
        "model.layers.9.mlp.up_proj.weight is not in this model; it has 6 layers",
        "lm_haed.weight is not in this model",
        "device_map puts model.layers.0 on GPU 0, and this machine has no accelerators",
        "leaves out 10 weights, in model.layers.5, model.norm",
        "has an entry for 'model.nrom', which this model does not have; did you mean 'model.norm'",
        "rank is 4 in the hyperparameters and 6 in the archive",
        "inner_params in the hyperparameters and in the archive",
    ):
        assert sum(words in one for one in said) == 1, (words, said)
    assert len(said) == 11
    assert all("\n" not in one for one in said)


def test_a_bad_target_is_shown_beside_the_one_that_the_archive_was_trained_for(llama: Toy) -> None:
    names = [*llama.targets[:-1], "model.layers.9.mlp.down_proj.weight"]
    first, second = plan(llama.config(inner_params=names)).problems
    assert f"was trained for {llama.targets[-1]}" in first
    assert second.startswith("model.layers.9.mlp.down_proj.weight is not in this model")


def test_a_bad_target_does_not_make_a_good_archive_of_easyedit_a_problem(tmp_path: Path) -> None:
    llama = Toy(tmp_path, archive="as_easyedit_writes")
    names = [*llama.targets[:-1], "model.layers.9.mlp.down_proj.weight"]
    assert "model.layers.9" in problem(llama.config(inner_params=names))


def test_a_bad_target_does_not_hide_that_the_archive_has_another_number_of_targets(
    tmp_path: Path,
) -> None:
    llama = Toy(tmp_path, archive="as_easyedit_writes")
    names = [*llama.targets[:-2], "model.layers.9.mlp.down_proj.weight"]
    first, second = plan(llama.config(inner_params=names)).problems
    assert "model.layers.9" in first
    assert "it has 9 targets, and inner_params names 8" in second


def test_a_missing_key_does_not_hide_the_rest(llama: Toy) -> None:
    config = llama.config(without=("rank", "model_name"), archive="nowhere")
    first, second, third = plan(config).problems
    assert first == "missing key 'model_name'"
    assert second.startswith("missing key 'rank': the archive nowhere does not record")
    assert third.startswith(f"there is no archive at {Path('nowhere').absolute()}. ")


@pytest.mark.parametrize(
    "change", [{"inner_params": "x"}, {"model_kwargs": [1]}, {"inner_params": []}]
)
def test_a_value_of_another_kind_is_a_problem_and_no_crash(
    llama: Toy, change: dict[str, Any]
) -> None:
    assert next(iter(change)) in problem(llama.config(**change))


def test_the_file_reader_says_the_same(llama: Toy) -> None:
    config = llama.config(apply="wieght", overlay_limit="much")
    said = plan(config).problems
    with pytest.raises(HparamsError) as raised:
        MENDParallelHyperParams.from_hparams(config)
    assert str(raised.value) == "; ".join(said)
    assert len(said) == 2


# --- the model


def test_a_model_that_is_nowhere_is_a_problem(llama: Toy) -> None:
    assert "download the model first" in problem(llama.config(model_name="nobody/nothing"))


def test_a_model_without_weights_is_a_problem(llama: Toy) -> None:
    (llama.directory / "model.safetensors").unlink()
    assert "has a configuration and no weights" in problem(llama.config())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LlamaForCausalML", "did you mean 'LlamaForCausalLM'"),
        ("AutoModelForSeq2SeqLM", "set model_class to one of LlamaForCausalLM"),
    ],
)
def test_a_class_that_is_not_the_models_is_a_problem(llama: Toy, name: str, says: str) -> None:
    assert says in problem(llama.config(model_class=name))


def test_code_in_a_models_repository_is_not_run(llama: Toy) -> None:
    config = llama.directory / "config.json"
    values = json.loads(config.read_text())
    values |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    config.write_text(json.dumps(values))
    (llama.directory / "mine.py").write_text("raise SystemExit('this ran')\n")
    found = plan(llama.config(model_kwargs={"trust_remote_code": True}))
    assert "model_name" in found.problems[0]


@pytest.mark.parametrize("dtype", ["bfloat61", 7])
def test_a_dtype_that_torch_does_not_have_is_a_problem(llama: Toy, dtype: Any) -> None:
    assert f"dtype is {dtype!r}" in problem(llama.config(model_kwargs={"dtype": dtype}))


def test_quantized_targets_cannot_be_written(llama: Toy) -> None:
    kwargs = {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    written = plan(llama.config(model_kwargs=kwargs))
    assert len(written.problems) == len(llama.targets)
    assert all("set `apply: output`" in one for one in written.problems)
    hung = plan(llama.config(model_kwargs=kwargs, apply="output"))
    assert hung.problems == []
    assert hung.targets[0].bytes == 16 * 24 // 2


# --- the device map


def test_a_tied_target_in_two_places_cannot_be_written(tmp_path: Path) -> None:
    toy = Toy(tmp_path, tied=True)
    where = {**toy.blocks_on(*("cpu",) * 6), "lm_head": "disk"}
    how = {
        "inner_params": ["lm_head.weight"],
        "archive": None,
        "model_kwargs": {"device_map": where},
    }
    said = plan(toy.config(**how)).problems
    assert any("are tied, one weight under two names" in one for one in said)
    said = plan(toy.config(**how, apply="output")).problems
    assert not any("are tied" in one for one in said)


def test_more_weights_than_a_place_may_take_are_a_problem(llama: Toy) -> None:
    config = llama.config(model_kwargs={"device_map": llama.blocks_on(0, 0, 0, 1, 1, 1, ends=0)})
    sizes = plan(config, max_memory={0: 1 << 30, 1: 1 << 30})
    assert sizes.problems == []
    held = {one.place: one.weights for one in sizes.memory}
    said = problem(config, max_memory={0: held[0] - 1, 1: held[1]})
    assert said.startswith("device_map puts 0.00 GiB of weights on GPU 0")
    assert "GPU 1, which max_memory does not name" in problem(config, max_memory={0: 1 << 30})


def test_a_network_on_a_device_that_is_not_here_is_a_problem(llama: Toy) -> None:
    assert "network_device puts the hypernetwork on GPU 7" in problem(
        llama.config(network_device=7)
    )


def test_weights_that_are_no_safetensors_need_an_offload_folder(llama: Toy) -> None:
    file = llama.directory / "model.safetensors"
    file.rename(file.with_name("pytorch_model.bin"))
    kwargs = {"device_map": llama.blocks_on(*("disk",) * 6)}
    assert "set offload_folder" in problem(llama.config(model_kwargs=kwargs))
    assert plan(llama.config(model_kwargs=kwargs | {"offload_folder": "x"})).problems == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0=20", "is no size"),
        ("gpu=20GiB", "'gpu' is no place"),
        ("", "names no place"),
        ("0:20GiB", "'0:20GiB' is no place"),
    ],
)
def test_max_memory_that_cannot_be_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(HparamsError, match=says):
        read_max_memory(text)


def test_max_memory_is_read_in_accelerates_units() -> None:
    assert read_max_memory("0=2GiB, cpu=3GB,") == {0: 2 << 30, "cpu": 3 * 10**9}


# --- the archive


def test_no_archive_is_a_problem_for_editing_and_none_for_training(llama: Toy) -> None:
    assert "archive is null" in problem(llama.config(archive=None))
    training = plan(llama.config(archive=None, alg="MEND_PARALLEL", without=("alg_name",)))
    assert training.problems == []
    assert "training starts with a new network" in training.notes[0]


def test_no_archive_is_no_problem_for_an_untrained_edit(llama: Toy) -> None:
    found = plan(llama.config(archive=None, untrained=True))
    assert found.problems == []
    assert any("untrained" in note for note in found.notes)


def test_an_archive_that_would_run_code_is_a_problem(llama: Toy) -> None:
    path = llama.folder / "broken"
    path.write_bytes(b"not an archive")
    assert "not a whole archive" in problem(llama.config(archive=str(path)))


def test_a_toys_own_file_has_no_problem(llama: Toy) -> None:
    assert plan(llama.config()).problems == []
    assert toy_hparams(llama.targets).inner_params == llama.targets
