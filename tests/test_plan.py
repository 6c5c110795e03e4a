"""A plan says before loading what loading and editing then do: places, stores, memory, and whether
the archive fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plan_toys import GATE_BYTES, Toy
from toys import REQUEST, toy_network

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, save_archive
from easyedit_mend_parallel.cli.plan import TOKENS, Plan, plan
from easyedit_mend_parallel.cli.plan.model import sketch
from easyedit_mend_parallel.files import read_tensors
from easyedit_mend_parallel.hparams.recorded import RECORDED
from easyedit_mend_parallel.weights.placement import place
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.target import find_target, find_targets

GIB = 1 << 30


@pytest.fixture
def llama(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def loaded(toy: Toy, **kwargs: Any) -> Any:
    folder = str(toy.folder / "offload")
    return type(toy.model).from_pretrained(
        toy.directory, dtype=torch.float32, offload_folder=folder, **kwargs
    )


def backups(found: Plan) -> dict[Any, int]:
    return {one.place: one.backups for one in found.memory if one.backups}


# --- places and stores


@pytest.mark.parametrize("share", [0.6, 0.3])
@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("t5", True)]
)
def test_an_automatic_map_is_the_one_that_loading_makes(
    family: str, tied: bool, share: float, tmp_path: Path
) -> None:
    toy = Toy(tmp_path, family, tied=tied)
    room = int(share * sum(weight.nbytes for weight in toy.model.parameters()))
    limits = {"cpu": room}
    model = loaded(toy, device_map="auto", max_memory=dict(limits))

    found = plan(toy.config(model_kwargs={"device_map": "auto", "max_memory": limits}))

    assert found.device_map == dict(model.hf_device_map)
    assert set(found.device_map.values()) == {"cpu", "disk"}


@pytest.mark.parametrize(
    ("blocks", "apply"),
    [
        (("cpu",) * 6, "weight"),
        (("disk",) * 4 + ("cpu",) * 2, "weight"),
        (("cpu", "cpu", "cpu", "disk", "cpu", "disk"), "weight"),
        (("disk",) * 6, "output"),
    ],
)
def test_stores_and_places_are_those_of_the_loaded_model(
    llama: Toy, blocks: tuple[str, ...], apply: str
) -> None:
    where = llama.blocks_on(*blocks)
    model = loaded(llama, device_map=where)

    found = plan(llama.config(model_kwargs={"device_map": where}, apply=apply))

    assert found.problems == []
    assert [one.target.name for one in found.targets] == llama.targets
    for one in found.targets:
        target = find_target(model, one.target.name)
        assert one.target == target
        assert one.kept == place(model, target).kept
        assert one.device == str(place(model, target).device)
        assert one.store == type(store_for(model, target, apply)).__module__.rpartition(".")[2]


def test_a_machine_with_a_gpu_is_planned_for_without_one(llama: Toy) -> None:
    total = sum(weight.nbytes for weight in llama.model.parameters())
    found = plan(llama.config(), max_memory={0: total // 2, "cpu": total})

    assert found.problems == []
    assert set(found.device_map.values()) == {0, "cpu"}
    last = found.targets[-1]
    assert (last.place, last.device, last.kept, last.store) == ("cpu", 0, "ram", "ram")
    assert found.network is not None
    assert found.network[0] == 0


def test_the_network_lives_where_the_file_says(llama: Toy) -> None:
    found = plan(llama.config(network_device=1), max_memory={0: GIB, 1: GIB})
    assert found.network is not None
    assert found.network[0] == 1
    assert [one.place for one in found.memory if one.network] == [1]


def test_a_model_split_between_processes_keeps_its_share_of_each_backup(llama: Toy) -> None:
    found = plan(
        llama.config(model_kwargs={"distributed_config": {"tp_plan": "auto", "tp_size": 2}})
    )
    assert {one.store for one in found.targets} == {"sharded"}
    assert backups(found) == {"split": 9 * GATE_BYTES // 2}


# --- memory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backups_and_network_take_what_an_edit_then_takes(llama: Toy, dtype: str) -> None:
    config = llama.config(model_kwargs={"dtype": dtype})
    found = plan(config)
    model = llama.model.to(getattr(torch, dtype))
    editor = MendParallel(model, llama.tokenizer, MENDParallelHyperParams.from_hparams(config))
    result = editor.edit(REQUEST)

    (here,) = found.memory
    assert here.backups == sum(bits.nbytes for bits in result.entry.before().values())
    assert here.network == sum(one.nbytes for one in editor.network.state_dict().values())
    assert here.weights == sum(weight.nbytes for weight in model.parameters())


def test_updates_that_are_not_written_need_no_backup(llama: Toy) -> None:
    (here,) = plan(llama.config(apply="output")).memory
    assert here.backups == here.backups_later == 0
    assert here.rows > 0


def test_rows_grow_with_the_widths_and_not_with_the_weights(llama: Toy) -> None:
    (here,) = plan(llama.config()).memory
    widths = 9 * (16 + 24)
    # x, δ, keys and values where a target computes; what goes into the network and comes out
    assert here.rows == TOKENS * widths * (8 + 8)


@pytest.mark.parametrize(
    ("limit", "memory", "disk"),
    [(None, 9, 0), (0, 0, 9), (4 * GATE_BYTES, 4, 5)],
    ids=["none", "nothing", "some"],
)
def test_edited_weights_on_disk_take_memory_up_to_the_limit(
    llama: Toy, limit: int | None, memory: int, disk: int
) -> None:
    where = llama.blocks_on(*("disk",) * 6)
    found = plan(llama.config(model_kwargs={"device_map": where}, overlay_limit=limit))
    wanted = {"cpu": memory * GATE_BYTES, "disk": disk * GATE_BYTES}
    assert backups(found) == {where: size for where, size in wanted.items() if size}


def test_tied_weights_are_counted_once(tmp_path: Path) -> None:
    toy = Toy(tmp_path, "gpt2", tied=True)
    (here,) = plan(toy.config()).memory
    assert here.weights == sum(weight.nbytes for weight in toy.model.parameters())


def test_what_does_not_fit_beside_the_weights_is_noted(llama: Toy) -> None:
    total = sum(weight.nbytes for weight in llama.model.parameters())
    found = plan(llama.config(), max_memory={"cpu": total + 100})
    assert any("leave that room" in note for note in found.notes)
    assert not plan(llama.config(), max_memory={"cpu": 10 * total}).notes


# --- the archive


@pytest.mark.parametrize("name", ["archive.safetensors", "as_easyedit_writes"])
def test_an_archive_that_fits_is_said_to_fit(tmp_path: Path, name: str) -> None:
    found = plan(Toy(tmp_path, archive=name).config())
    assert (found.archive_fits, found.problems, found.notes) == (True, [], [])


def test_only_the_shapes_of_matrices_are_read(llama: Toy) -> None:
    tensors, header = read_tensors(llama.archive, matrices=False)
    whole, _ = read_tensors(llama.archive)
    assert header["targets"]
    assert {name: one.shape for name, one in tensors.items()} == {
        name: one.shape for name, one in whole.items()
    }
    for name, tensor in tensors.items():
        assert tensor.is_meta == (tensor.dim() > 1), name


def test_an_untrained_archive_is_a_problem(llama: Toy) -> None:
    network = toy_network(llama.model, llama.tokenizer, observe=False)
    save_archive(llama.archive, network)
    found = plan(llama.config())
    assert found.archive_fits is False
    assert "never trained" in found.problems[0]


def test_an_archive_for_other_layers_of_the_same_shapes_is_a_problem(llama: Toy) -> None:
    others = [name.replace("layers.3", "layers.0") for name in llama.targets]
    found = plan(llama.config(inner_params=others))
    assert found.archive_fits is False
    (only,) = found.problems
    assert "model.layers.0.mlp.up_proj.weight" in only
    assert "was trained for model.layers.3" in only


def test_a_file_need_not_say_what_its_archive_records(llama: Toy) -> None:
    full, short = plan(llama.config()), plan(llama.config(without=RECORDED))
    assert (short.problems, short.archive_fits) == ([], True)
    assert short.targets == full.targets
    assert short.network == full.network


def test_nothing_is_loaded(llama: Toy) -> None:
    sketched = sketch(str(llama.directory), "AutoModelForCausalLM", {"dtype": "bfloat16"})
    assert {weight.device.type for weight in sketched.model.parameters()} == {"meta"}
    assert {weight.dtype for weight in sketched.model.parameters()} == {torch.bfloat16}
    assert find_targets(sketched.model, llama.targets) == find_targets(llama.model, llama.targets)


def test_a_tied_target_costs_what_its_one_weight_does(tmp_path: Path) -> None:
    toy = Toy(tmp_path, tied=True)
    found = plan(toy.config(inner_params=["lm_head.weight"], archive=None))
    assert found.targets[0].bytes == toy.model.lm_head.weight.nbytes
