"""Hypernetworks are trained for experts, files name them by their stack, and plans list each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_experts import EXPERTS, stacks, toy_mixture
from toys import REQUESTS, assert_unchanged, tokenizer_for, toy_hparams, toy_network, weights
from trained.runs import state, trainer

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, save_archive
from easyedit_mend_parallel.cli.plan import plan
from easyedit_mend_parallel.method.archive import load_archive
from easyedit_mend_parallel.weights.target import find_targets

SOLVED: dict[str, Any] = {"solved_edits": 2, "aggregate": None, "aggregate_options": None}
"""Options with which the edits of a step are solved together."""


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("options", [{}, {"trunk_memory": 0}, SOLVED])
def test_a_run_trains_a_network_for_the_experts_of_a_stack(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = toy_mixture(family)
    before = weights(model)
    names = stacks(model)
    run = trainer(tmp_path, model=model, inner_params=names, **options)
    begun = state(run)

    archive = load_archive(run.run())

    assert_unchanged(model, before)
    ended = state(run)
    assert all(torch.isfinite(tensor).all() for tensor in ended.values())
    assert any(not torch.equal(ended[name], begun[name]) for name in ended)
    assert len(archive.state["edit_lrs"]) == EXPERTS * len(names)
    hparams = toy_hparams(names, archive=str(archive.path), rank=None)
    result = MendParallel(model, tokenizer_for(model), hparams).edit(REQUESTS)
    result.rollback()
    assert_unchanged(model, before)


def written(folder: Path, model: Any, names: list[str], **changes: Any) -> Path:
    """A file of hyperparameters for a mixture in `folder`."""
    model.save_pretrained(folder / "model")
    values = toy_hparams(names).to_dict() | {
        "model_name": str(folder / "model"),
        "device": "cpu",
        **changes,
    }
    del values["alg"]
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_file_names_a_stack_for_the_experts_that_its_archive_was_trained_for(
    tmp_path: Path,
) -> None:
    model = toy_mixture("qwen3_moe")
    names = stacks(model, last=1)
    network = toy_network(model, tokenizer_for(model), names)
    archive = save_archive(tmp_path / "archive.safetensors", network)
    path = written(tmp_path, model, names, archive=str(archive))

    hparams = MENDParallelHyperParams.from_hparams(path)

    editor = MendParallel(model, tokenizer_for(model), hparams)
    assert [target.name for target in editor.targets] == [one.name for one in network.targets]


def test_a_plan_lists_each_expert_with_its_place_and_its_bytes(tmp_path: Path) -> None:
    model = toy_mixture("mixtral")
    names = stacks(model, last=1)
    network = toy_network(model, tokenizer_for(model), names)
    archive = save_archive(tmp_path / "archive.safetensors", network)

    found = plan(written(tmp_path, model, names, archive=str(archive)))

    assert not found.problems
    assert found.archive_fits
    assert [one.target for one in found.targets] == find_targets(model, names)
    assert {one.store for one in found.targets} == {"resident"}
    assert [one.bytes for one in found.targets] == [
        one.target.part_of(one.target.parameter(model)).nbytes for one in found.targets
    ]


@pytest.mark.parametrize(("apply", "is_problem"), [("weight", True), ("output", False)])
def test_a_plan_says_that_experts_on_disk_cannot_be_written(
    apply: str, is_problem: bool, tmp_path: Path
) -> None:
    model = toy_mixture("mixtral")
    places = {"": "cpu", "model.layers.3": "disk"}
    kwargs = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    path = written(
        tmp_path, model, stacks(model, last=1), apply=apply, untrained=True, model_kwargs=kwargs
    )

    found = plan(path)

    said = [one for one in found.problems if "cannot be written there" in one]
    assert bool(said) == is_problem
    assert len(found.problems) == len(said)
