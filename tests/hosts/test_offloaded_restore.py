"""In EasyEdit, a model whose edited weights are offloaded is measured, edited and given back bit
for bit by every way in which EasyEdit restores; edits that are kept add up.

EasyEdit's own copy-back writes into the placeholder of such a weight, and says nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from host_toys import ASKED, KEPT, TODAY, UNDONE
from offloads import all_stored, digests, from_checkpoint, logits_of
from oracle import assert_same_edit
from placements import device_map
from torch import Tensor
from toys import (
    BLOCKS,
    REQUESTS,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

import easyedit_mend_parallel as ours

MEASURED: dict[str, Any] = {
    "rephrase_prompts": ["Paris is the capital of", "Hamlet who wrote", "the river is"],
    "locality_inputs": {
        "near": {"prompt": ["the sun rises in the"] * 3, "ground_truth": ["east"] * 3}
    },
}
CPU = torch.device("cpu")
WAYS = ["ram", "dat", "safetensors-private"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")  # EasyEdit writes its logs where it is


@pytest.fixture(params=["MEND_PARALLEL", "MEND"])
def name(request: pytest.FixtureRequest) -> Any:
    """The method by its own name, and under EasyEdit's own after `replace_mend()`."""
    yield request.param
    ours.restore_mend()


def offloaded(model: Any, way: str, folder: Path) -> Any:
    if way == "ram":
        return cpu_offload(model, execution_device=CPU)
    if way == "dat":
        return disk_offload(model, str(folder / "offload"), execution_device=CPU)
    places = device_map(model, (0,) * BLOCKS, 0, name=lambda _: "cpu")
    places |= {f"model.layers.{number}": "disk" for number in range(2, BLOCKS)}
    return from_checkpoint(model, folder, places)


class Toy:
    """EasyEdit's editor of an offloaded toy Llama."""

    def __init__(self, way: str, name: str, folder: Path, **options: Any) -> None:
        from easyeditor import BaseEditor, MENDHyperParams

        self.plain = toy_model("llama")
        self.names = toy_targets(self.plain)
        self.base = weights(self.plain, self.names)
        self.folder = folder / "model"
        self.tokenizer = tokenizer_for(self.plain)
        network = toy_network(self.plain, self.tokenizer, edit_lr=0.1)
        archive = ours.save_archive(folder / "archive.safetensors", network)
        model = offloaded(copy.deepcopy(self.plain), way, self.folder)
        limit = {"overlay_limit": 0} if way.endswith("private") else {}
        values: dict[str, Any] = {"archive": str(archive), "device": "cpu"} | options
        hparams: Any = toy_hparams(self.names, **values, **limit)
        hparams.model_name = (model, self.tokenizer)
        self.own_hparams = toy_hparams(self.names, **values)
        if name == "MEND":
            ours.replace_mend(**limit, aggregate=self.own_hparams.aggregate)
            known = MENDHyperParams.__dataclass_fields__
            values = {key: value for key, value in vars(hparams).items() if key in known}
            hparams = MENDHyperParams(**values | {"alg_name": "MEND"})
        self.editor = BaseEditor.from_hparams(hparams)
        self.model = model
        self.files, self.unedited = digests(self.folder), logits_of(model)

    def stored(self) -> dict[str, Tensor]:
        return all_stored(self.model, self.names)

    def assert_unedited(self) -> None:
        now = self.stored()
        assert [name for name in self.names if not same_bits(now[name], self.base[name])] == []
        assert torch.equal(logits_of(self.model), self.unedited)
        assert digests(self.folder) == self.files

    def assert_edited_as(self, edited: Any) -> None:
        for name, weight in self.stored().items():
            assert_same_edit(weight, edited.get_parameter(name), self.base[name])
        torch.testing.assert_close(logits_of(self.model), logits_of(edited), rtol=1e-4, atol=1e-4)

    def edited_plainly(self, *batches: list[dict[str, str]]) -> Any:
        """The model in memory, edited by this package alone."""
        model = copy.deepcopy(self.plain)
        editor = ours.MendParallel(model, self.tokenizer, self.own_hparams)
        for requests in batches:
            editor.edit(requests)
        return model


@pytest.mark.parametrize("way", WAYS)
def test_edit_measures_and_leaves_an_offloaded_model_as_it_was(
    way: str, name: str, tmp_path: Path
) -> None:
    toy = Toy(way, name, tmp_path)

    metrics, edited, _ = toy.editor.edit(**ASKED, **copy.deepcopy(MEASURED), **UNDONE)

    assert edited is toy.model
    assert len(metrics) == len(REQUESTS)
    for measured in metrics:
        assert measured["post"].keys() >= {"rewrite_acc", "rephrase_acc", "locality"}
    # It was the edited model that was measured: predictions next to the edit changed.
    assert any(min(measured["post"]["locality"]["near_acc"]) < 1 for measured in metrics)
    toy.assert_unedited()


@pytest.mark.parametrize("way", WAYS)
def test_edits_of_offloaded_weights_that_are_kept_add_up(
    way: str, name: str, tmp_path: Path
) -> None:
    toy = Toy(way, name, tmp_path)

    _, _, weights_copy = toy.editor.edit(**ASKED, **KEPT)

    toy.assert_edited_as(toy.edited_plainly(*([request] for request in REQUESTS)))
    assert set(weights_copy) == set(toy.names)
    first_two = toy.edited_plainly(*([request] for request in REQUESTS[:2]))
    for key in weights_copy:
        assert_same_edit(weights_copy[key], first_two.get_parameter(key), toy.base[key])
    weights_copy()
    toy.assert_edited_as(first_two)
    ours.rollback_all(toy.model)
    toy.assert_unedited()


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_edit_of_offloaded_weights_is_taken_back_or_kept(
    way: str, name: str, tmp_path: Path
) -> None:
    toy = Toy(way, name, tmp_path, batch_size=len(REQUESTS))
    toy.editor.batch_edit(**ASKED, **UNDONE)
    toy.assert_unedited()

    _, _, weights_copy = toy.editor.batch_edit(**ASKED, **KEPT)

    toy.assert_edited_as(toy.edited_plainly(REQUESTS))
    weights_copy()
    toy.assert_unedited()


@pytest.mark.skipif(not TODAY, reason="the release has no normal_edit")
@pytest.mark.parametrize("way", WAYS)
def test_normal_edit_restores_offloaded_weights_by_looping_over_the_items(
    way: str, name: str, tmp_path: Path
) -> None:
    toy = Toy(way, name, tmp_path)
    toy.editor.normal_edit(ASKED["prompts"], ASKED["target_new"])
    toy.assert_unedited()
