"""`untrained: true`: the identity network, downhill whatever the sign of edit_lr, as far as it
takes until the target is the model's answer; with an archive's statistics or without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import (
    FAMILIES,
    REQUESTS,
    assert_unchanged,
    same_bits,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)
from untrained_toys import LIMIT, NEAR, ONE, TWO, answers, asked, calibrated, editor

from easyedit_mend_parallel import (
    ArchiveError,
    HparamsError,
    MendParallel,
    RequestError,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.calibration import calibrate
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate

# What it does


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edit_lr", [1e-4, -1e-4])
def test_the_target_becomes_the_answer_whatever_the_sign_of_edit_lr(
    family: str, edit_lr: float
) -> None:
    one = editor(family, edit_lr=edit_lr)
    before = weights(one.model)
    assert answers(one, ONE) == [False]

    result = one.edit(ONE, losses_after=True)

    assert answers(one, ONE) == [True]
    assert result.losses_after is not None
    assert result.losses_after < result.losses
    result.rollback()
    assert_unchanged(one.model, before)


def test_without_statistics_the_update_is_the_gradient_downwards_times_one_step() -> None:
    one = editor()
    batch = make_batch(one.model, one.tokenizer, asked(ONE))
    rows, _ = capture(one.model, one.targets, batch)

    result = one.edit(ONE)

    steps = set()
    for name, update in result.updates.items():
        gradient = rows[name].delta.T @ rows[name].x
        change = update.values.T @ update.keys
        step = float((change * gradient).sum() / (gradient * gradient).sum())
        assert step < 0
        torch.testing.assert_close(change, step * gradient, rtol=1e-4, atol=1e-6)
        steps.add(round(step, 3))
    assert len(steps) == 1


@pytest.mark.parametrize("norm", [True, False])
def test_with_statistics_rows_are_normalised_where_the_hyperparameters_say_norm(
    norm: bool, tmp_path: Path
) -> None:
    model = toy_model("llama")
    one = editor(model=model, archive=calibrated(tmp_path, model), norm=norm)
    batch = make_batch(model, one.tokenizer, asked(ONE))
    rows, _ = capture(model, one.targets, batch)
    result = one.edit(ONE)

    state = load_archive(tmp_path / "calibrated.safetensors").state
    target = one.targets[0]
    keys = rows[target.name].x
    if norm:
        prefix = f"mend.{target.shape}.u_"
        keys = (keys - state[prefix + "mean"]) / (state[prefix + "std"] + 1e-7)
    keys = keys * rows[target.name].live.unsqueeze(-1)
    torch.testing.assert_close(result.updates[target.name].keys, keys)
    assert answers(one, ONE) == [True]


@pytest.mark.parametrize("requests", [TWO, NEAR, [*TWO, NEAR[1]]], ids=["apart", "alike", "three"])
@pytest.mark.parametrize("aggregate", ["sum", "mean_loss"])
def test_several_requests_have_a_step_each_the_one_they_have_alone(
    requests: Any, aggregate: str
) -> None:
    one = editor(aggregate=aggregate)
    alone = []
    for request in requests:
        result = one.edit(request)
        alone.append({name: update.norm() for name, update in result.updates.items()})
        result.rollback()

    together = one.edit(requests)

    for name, update in together.updates.items():
        for number, norms in enumerate(alone):
            mine = update.request == number
            part = LowRankUpdate(update.keys[mine], update.values[mine], update.request[mine])
            torch.testing.assert_close(part.norm(), norms[name], rtol=1e-3, atol=0.0)


def test_requests_that_disturb_each_other_are_named(caplog: pytest.LogCaptureFixture) -> None:
    one = editor()
    with caplog.at_level(logging.WARNING):
        one.edit(NEAR)

    yes = answers(one, NEAR)
    assert not all(yes)
    (said,) = [m for m in caplog.messages if "not answered by the edited model" in m]
    for request, answered in zip(NEAR, yes, strict=True):
        assert (f"-> {request['target_new']!r}" in said) is not answered


def test_one_system_keeps_the_answers_of_requests_that_disturb_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = editor(aggregate="least_squares")
    with caplog.at_level(logging.WARNING):
        one.edit(NEAR)

    assert answers(one, NEAR) == [True, True]
    assert not [m for m in caplog.messages if "not answered by the edited model" in m]


@pytest.mark.parametrize("bos", [True, False])
def test_a_bos_among_the_labels_is_no_part_of_the_answer(bos: bool) -> None:
    # The model would have to say <s> in the middle of the prompt, which no edit is to bring about.
    model = toy_model("llama")
    tokenizer = toy_tokenizer(bos=bos)
    hparams = toy_hparams(toy_targets(model), untrained=True, max_relative_norm=LIMIT)
    MendParallel(model, tokenizer, hparams).edit(ONE)

    batch = make_batch(model, tokenizer, asked(ONE), special_tokens_in_labels=False)
    assert batch.answered(model).tolist() == [True]


def test_the_edit_can_be_hung_on_outputs_and_comes_off() -> None:
    one = editor(apply="output")
    before = weights(one.model)
    result = one.edit(ONE)
    assert answers(one, ONE) == [True]
    assert_unchanged(one.model, before)
    result.rollback()
    assert answers(one, ONE) == [False]


# Archives


def test_a_missing_archive_is_an_error_that_names_both_ways_out() -> None:
    with pytest.raises(ArchiveError) as raised:
        editor(untrained=False)
    for way in ("archive is null", "train one", "untrained: true", "mend-parallel calibrate"):
        assert way in str(raised.value)


def test_a_path_without_an_archive_names_them_too(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError) as raised:
        editor(untrained=False, archive=str(tmp_path / "none"))
    for way in (str(tmp_path / "none"), "train one", "untrained: true"):
        assert way in str(raised.value)


def test_without_statistics_it_is_said_that_rows_are_not_normalised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        one = editor()
        one.edit(ONE)
        one.edit(TWO[1])
    assert sum("not normalised" in message for message in caplog.messages) == 1


def test_calibrated_statistics_without_untrained_are_refused(tmp_path: Path) -> None:
    model = toy_model("llama")
    archive = calibrated(tmp_path, model)
    with pytest.raises(ArchiveError, match="set `untrained: true`"):
        editor(model=model, untrained=False, archive=archive)


def test_of_a_trained_archive_only_the_statistics_are_used_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    network = toy_network(model, tokenizer)
    path = save_archive(tmp_path / "trained.pt", network)

    with caplog.at_level(logging.WARNING):
        one = editor(model=model, archive=str(path))

    assert "only the statistics are used" in caplog.text
    rows, _ = capture(model, one.targets, make_batch(model, tokenizer, asked(ONE)))
    name = one.targets[0].name
    statistics = one.network.mend["(16, 24)"]
    keys = (rows[name].x - statistics.u_mean) / (statistics.u_std + 1e-7)
    torch.testing.assert_close(statistics.u_mean, network.mend["(16, 24)"].u_mean)
    torch.testing.assert_close(one.network(rows)[name].keys, keys * rows[name].live.unsqueeze(-1))


def test_statistics_of_another_rank_serve_and_those_of_other_targets_are_refused(
    tmp_path: Path,
) -> None:
    model = toy_model("llama")
    archive = calibrated(tmp_path, model, rank=3, n_hidden=2)
    editor(model=model, archive=archive).edit(ONE)
    with pytest.raises(ArchiveError, match="does not fit these targets"):
        editor(model=model, archive=archive, shared=False)


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_a_norm_or_a_margin_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(HparamsError, match="max_relative_norm"):
        editor(max_relative_norm=limit)
    with pytest.raises(HparamsError, match="step_margin"):
        editor(step_margin=limit)


def test_calibration_equals_what_a_network_observes_and_changes_nothing() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    before = weights(model)
    targets = find_targets(model, toy_targets(model))
    config = toy_hparams(toy_targets(model)).network_config()
    one, other = Hypernetwork(targets, config), Hypernetwork(targets, config)
    batches = [make_batch(model, tokenizer, asked(request)) for request in REQUESTS]

    calibrate(model, targets, one, batches)

    for batch in batches:
        other.observe(capture(model, targets, batch)[0])
    for name, tensor in one.state_dict().items():
        if name.rpartition(".")[2] in ("u_mean", "v_mean", "u_std", "v_std", "k"):
            assert same_bits(tensor, other.state_dict()[name])
            assert tensor.isfinite().all()
    assert_unchanged(model, before)


def test_calibration_on_nothing_is_refused() -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    network = Hypernetwork(targets, toy_hparams(toy_targets(model)).network_config())
    with pytest.raises(TrainingError, match="give more requests"):
        calibrate(model, targets, network, [])


def test_bad_requests_are_refused_as_for_any_edit() -> None:
    with pytest.raises(RequestError):
        editor().edit({"prompt": "who", "target_new": " "})
