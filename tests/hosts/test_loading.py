"""EasyEdit loads a model for our methods with the user's `model_kwargs` and leaves it where the
device map puts it, in BaseEditor and in EditTrainer; every other method is loaded as ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
import transformers
from accelerate import dispatch_model
from easyeditor import BaseEditor, EditTrainer, MultimodalTrainer
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT
from host_toys import (
    KEPT,
    ONE,
    TODAY,
    Toy,
    assert_same_edit,
    make_toy,
    mend_fields,
    mixed_device_map,
    save_toy,
    write_yaml,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelTrainingHparams,
    PlacementError,
    replace_mend,
)
from easyedit_mend_parallel.easyedit.loading import from_pretrained_with

FROM_PRETRAINED = PreTrainedModel.__dict__["from_pretrained"]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, Toy]:
    return save_toy(tmp_path)


@pytest.fixture(autouse=True)
def transformers_is_as_it_was() -> Any:
    """Whatever a test does, loading is transformers' own again after it."""
    yield
    assert PreTrainedModel.__dict__["from_pretrained"] is FROM_PRETRAINED


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every `.to()` that reaches a transformers model of class."""
    seen: list[tuple[Any, ...]] = []
    original = PreTrainedModel.to

    def to(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "to", to)
    return seen


def mixed(folder: Path, first: int = 3, **more: Any) -> dict[str, Any]:
    """The `model_kwargs` of a user whose model does not fit: some blocks on disk."""
    offload = folder / "offload"
    return {
        "device_map": mixed_device_map(first),
        "offload_folder": str(offload),
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        **more,
    }


def edited_weight(toy: Toy, model: Any) -> Tensor:
    weight: Tensor = model.get_parameter(toy.names[-1])
    return weight.detach().clone()


# BaseEditor


def test_model_kwargs_decide_device_map_dtype_and_attention(
    saved: tuple[str, Toy], tmp_path: Path, moves: list[Any]
) -> None:
    path, toy = saved
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs=mixed(tmp_path))
    assert hparams.model_parallel is False  # so EasyEdit calls `.to()`, which nobody may

    editor = BaseEditor.from_hparams(hparams)

    model = editor.model
    assert model.hf_device_map == mixed_device_map()
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.get_parameter("model.layers.0.mlp.up_proj.weight").is_meta
    assert model.get_parameter("model.layers.3.mlp.up_proj.weight").device.type == "cpu"
    assert moves == []


def test_a_model_loaded_over_memory_and_disk_is_edited_as_on_one_device(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    kwargs = mixed(tmp_path, dtype="float32")
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs=kwargs)
    MendParallel(toy.model, toy.tokenizer, hparams).edit(
        {"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}
    )

    editor = BaseEditor.from_hparams(hparams)
    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert_same_edit(model, toy.model, toy.before, toy.names)
    weights_copy()
    for name in toy.names:
        assert toys.same_bits(model.get_parameter(name).detach(), toy.before[name])


def test_the_hyperparameters_are_the_users_again_after_loading(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs=mixed(tmp_path))
    before = hparams.to_dict()

    BaseEditor.from_hparams(hparams)

    assert hparams.to_dict() == before


def test_after_loading_a_model_can_be_moved_again(saved: tuple[str, Toy], tmp_path: Path) -> None:
    path, toy = saved
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs={"device_map": {"": "cpu"}})

    model = BaseEditor.from_hparams(hparams).model

    assert not [name for name in vars(model) if "easyedit" in name]
    assert model.to(torch.float64) is model
    assert model.dtype == torch.float64


def test_after_loading_accelerates_own_guard_stands_again(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs=mixed(tmp_path))

    model = BaseEditor.from_hparams(hparams).model

    with pytest.raises(RuntimeError, match="offloaded"):
        model.to("cpu")


@pytest.mark.parametrize("on_disk", [3, 0], ids=["some_on_disk", "all_in_memory"])
@pytest.mark.parametrize(
    "left_out", ["lm_head", "model.embed_tokens", "model.layers.2", "model.norm"]
)
def test_a_device_map_that_leaves_weights_out_is_refused(
    saved: tuple[str, Toy], tmp_path: Path, left_out: str, on_disk: int
) -> None:
    path, toy = saved
    kwargs = mixed(tmp_path, first=on_disk)
    del kwargs["device_map"][left_out]
    hparams = toy.hparams(tmp_path, model_name=path, model_kwargs=kwargs)

    with pytest.raises(PlacementError, match=f"device_map .*{left_out}"):
        BaseEditor.from_hparams(hparams)

    assert (hparams.alg_name, hparams.model_parallel) == ("MEND_PARALLEL", False)


def test_model_parallel_works_where_there_is_only_a_cpu(
    saved: tuple[str, Toy], tmp_path: Path, moves: list[Any]
) -> None:
    path, toy = saved
    hparams = toy.hparams(tmp_path, model_name=path, model_parallel=True)

    editor = BaseEditor.from_hparams(hparams)
    _, model, weights_copy = editor.edit(**ONE, **KEPT)

    assert model.device.type == "cpu"
    assert moves == []
    assert hparams.model_parallel is True
    assert len(weights_copy) == len(toy.names)


def test_a_device_map_wins_over_model_parallel(saved: tuple[str, Toy], tmp_path: Path) -> None:
    path, toy = saved
    hparams = toy.hparams(
        tmp_path, model_name=path, model_parallel=True, model_kwargs=mixed(tmp_path)
    )

    model = BaseEditor.from_hparams(hparams).model

    assert model.hf_device_map == mixed_device_map()


@pytest.mark.parametrize("model_parallel", [True, False])
@pytest.mark.parametrize("on_disk", [3, 0], ids=["some_on_disk", "all_in_memory"])
def test_a_dispatched_model_stays_where_it_is_whoever_made_it(
    saved: tuple[str, Toy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moves: list[Any],
    model_parallel: bool,
    on_disk: int,
) -> None:
    path, toy = saved
    kept = toys.weights(toy.model, toy.names)
    where = mixed_device_map(on_disk)
    model = dispatch_model(toy.model, where, offload_dir=str(tmp_path / "disk"), force_hooks=True)

    class Stub:
        @classmethod
        def from_pretrained(cls, *_args: Any, **_kwargs: Any) -> Any:
            return model

    module = sys.modules["easyeditor.editors.editor"]
    monkeypatch.setattr(module, "AutoModelForCausalLM", Stub)
    hparams = toy.hparams(tmp_path, model_name=path, model_parallel=model_parallel)

    editor = BaseEditor.from_hparams(hparams)

    assert (editor.model, moves) == (model, [])
    assert not [name for name in vars(model) if "easyedit" in name]
    _, edited, weights_copy = editor.edit(**ONE, **KEPT)
    assert edited is model
    weights_copy()
    toys.assert_unchanged(model, kept)


def test_without_model_kwargs_a_model_loads_as_for_mend(
    saved: tuple[str, Toy], tmp_path: Path, moves: list[Any]
) -> None:
    path, toy = saved

    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, model_name=path))

    assert editor.model.dtype == torch.float32
    assert editor.tok.padding_side == "left"
    assert editor.tok.pad_token_id == editor.tok.eos_token_id
    assert not hasattr(editor.model, "hf_device_map")
    assert len(moves) == 1


@pytest.mark.skipif(not TODAY, reason="the release 0.0.1.dev0 does not know qwen2")
def test_a_path_that_says_qwen2_loads_in_bfloat16_as_for_mend(tmp_path: Path) -> None:
    toy = make_toy(tmp_path, "qwen2")
    path = tmp_path / "toy-qwen2"
    toy.model.save_pretrained(path)
    toy.tokenizer.save_pretrained(path)
    fields = toy.fields(model_name=str(path))

    class Mend(SimpleNamespace):
        """EasyEdit's own method, as its editor sees it."""

    own = BaseEditor.from_hparams(Mend(**fields))
    ours = BaseEditor.from_hparams(toy.hparams(tmp_path, model_name=str(path)))

    assert own.alg_name == "MEND"
    assert ours.model.dtype == own.model.dtype == torch.bfloat16
    assert ours.tok.padding_side == own.tok.padding_side == "left"
    _, model, _ = ours.edit(**ONE, **KEPT)
    assert model.dtype == torch.bfloat16

    chosen = toy.hparams(tmp_path, model_name=str(path), model_kwargs={"dtype": "float32"})
    assert BaseEditor.from_hparams(chosen).model.dtype == torch.float32


def test_another_method_is_loaded_as_ever(
    saved: tuple[str, Toy], tmp_path: Path, moves: list[Any]
) -> None:
    path, _ = saved
    fields = mend_fields(model_name=path, model_kwargs=mixed(tmp_path))
    fine_tuning = SimpleNamespace(**{**fields, "alg_name": "FT", "alg": "FT"})

    if TODAY:
        editor = BaseEditor.from_hparams(fine_tuning)
        assert editor.model.dtype == torch.float32
        assert not hasattr(editor.model, "hf_device_map")
        assert moves == [(torch.device("cpu"),)]
    else:  # the release knows only CUDA, and for its own methods that stays as it is
        with pytest.raises(RuntimeError, match="cuda:cpu"):
            BaseEditor.from_hparams(fine_tuning)
        assert moves == [("cuda:cpu",)]


def test_easyedits_own_mend_is_loaded_as_ever(saved: tuple[str, Toy], tmp_path: Path) -> None:
    path, _ = saved
    own = SimpleNamespace(**mend_fields(model_name=path, model_kwargs=mixed(tmp_path)))
    own.model_parallel = True  # by the device map "auto", which needs no `.to()`

    if TODAY:
        model = BaseEditor.from_hparams(own).model
        assert model.dtype == torch.float32
        assert not any(parameter.is_meta for parameter in model.parameters())
    else:  # the release stumbles over a model that is on no numbered device
        with pytest.raises(IndexError):
            BaseEditor.from_hparams(own)


# Threads


def test_a_thread_that_does_not_ask_loads_as_ever(saved: tuple[str, Toy]) -> None:
    path, _ = saved
    loaded: list[Any] = []

    def load() -> None:
        loaded.append(transformers.AutoModelForCausalLM.from_pretrained(path))

    with from_pretrained_with({"dtype": "bfloat16"}):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        load()

    assert [model.dtype for model in loaded] == [torch.float32, torch.bfloat16]


def test_two_threads_may_load_at_once_and_end_in_any_order(saved: tuple[str, Toy]) -> None:
    path, _ = saved
    begun, may_end = threading.Event(), threading.Event()
    loaded: list[Any] = []

    def first() -> None:
        with from_pretrained_with({"dtype": "float64"}):
            begun.set()
            assert may_end.wait(60)
            loaded.append(transformers.AutoModelForCausalLM.from_pretrained(path))

    thread = threading.Thread(target=first)
    with from_pretrained_with({"dtype": "bfloat16"}):
        thread.start()
        assert begun.wait(60)
        loaded.append(transformers.AutoModelForCausalLM.from_pretrained(path))
    may_end.set()
    thread.join()

    assert [model.dtype for model in loaded] == [torch.bfloat16, torch.float64]


# EditTrainer


class Stub(nn.Module):
    """An algorithm as EasyEdit's trainers hold it, without an algorithm."""

    def __init__(self, model: Any, config: Any, _constructor: Any) -> None:
        super().__init__()
        self.model = model
        self.scale = nn.Parameter(torch.ones(()))

    def outer_parameters(self) -> list[nn.Parameter]:
        return [self.scale]


class Records(list[int]):
    def collate_fn(self, batch: Any) -> Any:
        return batch

    collate_gpt_fn = collate_fn


def training_hparams(toy: Toy, folder: Path, **values: Any) -> MENDParallelTrainingHparams:
    path = write_yaml(folder / "train.yaml", **toy.fields(archive=None, **values))
    return MENDParallelTrainingHparams.from_hparams(path)


def train(config: Any, trainer: Any = EditTrainer) -> Any:
    """The model of a trainer that was just made."""
    return trainer(config, Records([1]), Records([1])).model.model


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEND_PARALLEL", "MEND", "OTHER"):
        monkeypatch.setitem(ALG_TRAIN_DICT, name, Stub)


@pytest.mark.usefixtures("stub")
def test_the_trainer_loads_with_model_kwargs_and_leaves_the_model_in_place(
    saved: tuple[str, Toy], tmp_path: Path, moves: list[Any]
) -> None:
    path, toy = saved
    config = training_hparams(toy, tmp_path, model_name=path, model_kwargs=mixed(tmp_path))
    assert config.model_parallel is False

    model = train(config)

    assert model.hf_device_map == mixed_device_map()
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert moves == []
    assert str(config.device) == "cpu"


@pytest.mark.usefixtures("stub")
def test_the_trainers_batches_go_where_token_ids_are_wanted(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    kwargs = mixed(tmp_path)
    kwargs["device_map"]["model.embed_tokens"] = "disk"
    config = training_hparams(toy, tmp_path, model_name=path, model_kwargs=kwargs)

    model = train(config)

    assert model.get_parameter("model.embed_tokens.weight").is_meta
    assert str(config.device) == "cpu"  # EasyEdit's data sets move their batches there


@pytest.mark.usefixtures("stub")
def test_the_trainer_without_a_device_map_moves_the_model_as_ever(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    kwargs = {"dtype": "bfloat16"}
    config = training_hparams(toy, tmp_path, model_name=path, model_kwargs=kwargs)

    model = train(config)

    assert model.dtype == torch.bfloat16
    assert (config.model_parallel, config.device) == (False, "cpu")


@pytest.mark.usefixtures("stub")
def test_a_trainers_device_map_that_leaves_weights_out_is_refused(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    kwargs = mixed(tmp_path)
    del kwargs["device_map"]["lm_head"]

    with pytest.raises(PlacementError, match=r"device_map .*lm_head"):
        train(training_hparams(toy, tmp_path, model_name=path, model_kwargs=kwargs))


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("name", ["OTHER", "MEND"])
def test_a_trainer_of_another_method_loads_as_ever(
    saved: tuple[str, Toy], tmp_path: Path, name: str
) -> None:
    path, toy = saved
    own = {"alg": name, "lr": 1e-6, "model_kwargs": mixed(tmp_path)}
    fields = toy.fields(model_name=path, archive=None, **own)

    model = train(SimpleNamespace(**fields))

    assert model.dtype == torch.float32
    assert not hasattr(model, "hf_device_map")


@pytest.mark.usefixtures("stub")
def test_replace_mend_serves_the_trainer_of_text_models_alone(
    saved: tuple[str, Toy], tmp_path: Path
) -> None:
    path, toy = saved
    fields = vars(training_hparams(toy, tmp_path, model_name=path)) | {"alg": "MEND"}
    replace_mend(model_kwargs={"dtype": "bfloat16"})

    assert train(SimpleNamespace(**fields)).dtype == torch.bfloat16
    assert train(SimpleNamespace(**fields), MultimodalTrainer).dtype == torch.float32
    assert train(SimpleNamespace(**{**fields, "alg": "OTHER"})).dtype == torch.float32
