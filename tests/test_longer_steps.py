"""`max_step`: a trained update is made longer where the model does not give the answer yet, by as
little as it takes, and is MEND's own everywhere else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from toys import same_bits, toy_hparams, toy_model, toy_targets, toy_tokenizer
from untrained_toys import ONE, TWO, answers

from easyedit_mend_parallel import HparamsError, MendParallel
from easyedit_mend_parallel.method.extend_steps import GROWTH
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.target import find_targets

SHORT = -1e-3
"""A rate that goes downhill, and not far enough for any answer."""


def editor(max_step: float = 1.0, rate: float = SHORT, **options: Any) -> MendParallel:
    """Of a toy whose network gives back the gradient, so that edits differ in length only."""
    model = toy_model("llama")
    hparams = toy_hparams(
        toy_targets(model), max_step=max_step, edit_lr=rate, norm=False, **options
    )
    network = Hypernetwork(find_targets(model, hparams.inner_params), hparams.network_config())
    return MendParallel(model, toy_tokenizer(), hparams, network=network.eval())


def factor(one: MendParallel, request: Any) -> float:
    """How much longer an edit is than MEND's own."""
    own, longer = editor().edit(request).updates, one.edit(request).updates
    ratios = [float(longer[name].norm() / own[name].norm()) for name in own]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-4)
    return ratios[0]


def test_an_edit_gets_as_long_as_its_answer_takes_and_no_longer() -> None:
    plain = editor()
    plain.edit(ONE)
    assert answers(plain, ONE) == [False]

    one = editor(max_step=1e6)
    times = factor(one, ONE)

    assert answers(one, ONE) == [True]
    assert times > GROWTH
    shorter = editor(rate=SHORT * times / GROWTH)
    shorter.edit(ONE)
    assert answers(shorter, ONE) == [False]


def test_an_edit_that_brings_its_answer_is_the_one_that_mend_makes() -> None:
    enough = SHORT * factor(editor(max_step=1e6), ONE)
    plain, one = editor(rate=enough).edit(ONE), editor(rate=enough, max_step=8).edit(ONE)
    for name, update in plain.updates.items():
        assert same_bits(update.values, one.updates[name].values)
        assert same_bits(update.keys, one.updates[name].keys)


def test_an_edit_out_of_reach_keeps_its_length_and_the_log_names_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert factor(editor(max_step=1.1), ONE) == 1.0
    assert f"max_step (1.1) makes the model answer {ONE['prompt']!r}" in caplog.text


@pytest.mark.parametrize("aggregate", ["sum", "least_squares"])
def test_each_request_of_a_batch_gets_a_length_of_its_own(aggregate: str) -> None:
    alone = [factor(editor(max_step=1e6), request) for request in TWO]
    assert alone[0] != pytest.approx(alone[1])
    one, plain = editor(max_step=1e6, aggregate=aggregate), editor(aggregate=aggregate)
    together, own = one.edit(TWO).updates, plain.edit(TWO).updates

    if aggregate == "least_squares":
        assert answers(one, TWO) == [True, True]
        assert answers(plain, TWO) == [False, False]
        return
    for name, update in together.items():
        times = torch.tensor(alone)[update.request].unsqueeze(1)
        torch.testing.assert_close(update.values, own[name].values * times, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("value", [0.5, float("inf"), float("nan")])
def test_a_step_below_one_or_without_end_is_refused(value: float) -> None:
    with pytest.raises(HparamsError, match="max_step"):
        editor(max_step=value)
