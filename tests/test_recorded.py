"""Hyperparameters need not repeat what their archive records; where both say it, they agree or an
error names both. What no archive says, the hyperparameters have to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import (
    REQUEST,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)
from trained.runs import trainer

from easyedit_mend_parallel import (
    ArchiveError,
    HparamsError,
    MendParallel,
    MENDParallelHyperParams,
    MENDParallelTrainingHparams,
    save_archive,
)
from easyedit_mend_parallel.hparams.recorded import FIXED, RECORDED


@pytest.fixture(scope="module")
def model() -> Any:
    return toy_model("llama")


@pytest.fixture
def archive(model: Any, tmp_path: Path) -> Path:
    """Learned rates differ, so that one which reaches another target changes the edit."""
    network = toy_network(model, tokenizer_for(model))
    with torch.no_grad():
        network.edit_lrs.copy_(torch.linspace(1e-3, 1e-2, len(network.edit_lrs)))
    return save_archive(tmp_path / "archive.safetensors", network)


def least(archive: Path | None, **values: Any) -> dict[str, Any]:
    known = {"model_name": "toy", "archive": archive and str(archive), "aggregate": "sum"}
    return known | {"on_worse": "ignore"} | values


def full(model: Any, archive: Path, **values: Any) -> dict[str, Any]:
    return toy_hparams(toy_targets(model)).to_dict() | least(archive) | values


def edited(model: Any, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    names = toy_targets(model)
    editor = MendParallel(model, tokenizer_for(model), MENDParallelHyperParams(**values))
    result = editor.edit(REQUEST)
    found = weights(model, names)
    result.rollback()
    return found


def refusal(**values: Any) -> str:
    with pytest.raises(HparamsError) as raised:
        MENDParallelHyperParams(**values).targets_and_network()
    return str(raised.value)


def test_an_edit_with_the_least_file_is_that_with_the_full_one(model: Any, archive: Path) -> None:
    short, long = edited(model, least(archive)), edited(model, full(model, archive))

    assert all(same_bits(short[name], long[name]) for name in long)
    assert not all(same_bits(short[name], now) for name, now in weights(model, list(short)).items())


def test_targets_in_another_order_get_their_own_learned_rates(model: Any, archive: Path) -> None:
    turned = list(reversed(toy_targets(model)))
    short, long = (
        edited(model, values)
        for values in (least(archive), full(model, archive, inner_params=turned))
    )

    assert all(same_bits(short[name], long[name]) for name in long)


OTHER = {
    "rank": 5,
    "n_hidden": 2,
    "init": "xavier",
    "norm": False,
    "combine": False,
    "shared": False,
}


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_differs_is_an_error_with_both_values_and_sources(
    name: str, model: Any, archive: Path
) -> None:
    kept = full(model, archive)[name]
    says = f"{name} is {OTHER[name]!r} in the hyperparameters and {kept!r} in the archive {archive}"
    values = full(model, archive, **{name: OTHER[name]})
    before = weights(model, toy_targets(model))

    assert says in refusal(**values)
    with pytest.raises(HparamsError, match="in the hyperparameters and"):
        edited(model, values)
    assert all(same_bits(now, before[name]) for name, now in weights(model, list(before)).items())


def test_other_targets_are_an_error_that_names_those_of_both(model: Any, archive: Path) -> None:
    mine, theirs = "model.layers.0.mlp.up_proj.weight", toy_targets(model)[-1]

    says = refusal(**full(model, archive, inner_params=[*toy_targets(model)[:-1], mine]))

    assert f"the former name {mine}, and the latter was trained for {theirs}" in says
    assert str(archive) in says


def test_learned_rates_and_their_factor_may_differ(model: Any, archive: Path) -> None:
    values = full(model, archive, edit_lr=7.0, lr_scale=0.5)

    _, network = MENDParallelHyperParams(**values).targets_and_network()

    assert (network.edit_lr, network.lr_scale) == (7.0, 0.5)


def test_an_archive_of_easyedit_records_nothing_and_the_error_says_so(
    model: Any, tmp_path: Path
) -> None:
    pickled = save_archive(tmp_path / "archive.pt", toy_network(model, tokenizer_for(model)))

    says = refusal(**least(pickled))

    assert f"missing keys 'inner_params', {', '.join(map(repr, FIXED))}: " in says
    assert f"{pickled} does not record" in says
    assert "EasyEdit's format" in says
    names, network = MENDParallelHyperParams(**full(model, pickled)).targets_and_network()
    assert (names, network.rank) == (toy_targets(model), 6)


@pytest.mark.parametrize("name", ["inner_params", "rank", "edit_lr"])
def test_what_nothing_records_is_missed_by_name(name: str, model: Any) -> None:
    values = toy_hparams(toy_targets(model)).to_dict() | {name: None}

    assert refusal(**values).startswith(f"missing key '{name}': archive is null")


def test_a_new_network_has_the_usual_options_where_nothing_is_said(model: Any) -> None:
    values = least(None, inner_params=toy_targets(model), rank=3, edit_lr=1e-3)

    _, network = MENDParallelTrainingHparams(**values).targets_and_network()

    assert (network.rank, network.n_hidden, network.init) == (3, 1, "id")
    assert network.norm
    assert network.combine
    assert network.shared


def test_statistics_of_a_network_of_another_rank_serve_an_untrained_edit(
    model: Any, archive: Path
) -> None:
    values = full(model, archive, rank=3, untrained=True)

    assert MENDParallelHyperParams(**values).targets_and_network()[1].rank == 3
    with pytest.raises(HparamsError, match="rank is 3"):  # training goes on with the network itself
        MENDParallelTrainingHparams(**values).targets_and_network()


def test_an_archive_that_is_not_there_is_said_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"there is no archive at .*nowhere\.safetensors"):
        MENDParallelHyperParams(**least(tmp_path / "nowhere.safetensors")).targets_and_network()


def test_training_goes_on_from_an_archive_without_its_options_said_again(
    model: Any, archive: Path, tmp_path: Path
) -> None:
    said = dict.fromkeys(RECORDED)
    run = trainer(tmp_path / "run", archive=str(archive), **said)

    assert [target.name for target in run.targets] == toy_targets(model)
    assert run.network.config.rank == 6
