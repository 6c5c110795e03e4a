"""An update after which its own target is less likely than before is refused, with both figures and
nothing kept; or written with a warning; or not looked at."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from edited import FACTS
from toys import (
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import HparamsError, Journal, MendParallel
from easyedit_mend_parallel.errors import WorseError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.target import find_targets

DOWNHILL = {"edit_lr": -1e-2, "norm": False}
"""The identity as a network, which goes down the gradient of the target's loss."""
UPHILL = {"edit_lr": 3e-2, "norm": False}


def editor(model: Any, **options: Any) -> MendParallel:
    hparams = toy_hparams(toy_targets(model), **{"on_worse": None, **options})
    targets = find_targets(model, hparams.inner_params)
    network = Hypernetwork(targets, hparams.network_config()).eval()
    return MendParallel(model, tokenizer_for(model), hparams, network=network)


def losses(model: Any, requests: Any) -> list[float]:
    with torch.no_grad():
        batch = make_batch(model, tokenizer_for(model), as_requests(requests))
        found: list[float] = batch.losses_on(model).tolist()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("apply", ["weight", "output"])
def test_it_is_refused_with_both_figures_and_nothing_is_kept(family: str, apply: str) -> None:
    model = toy_model(family)
    before = weights(model)
    (was,) = losses(model, FACTS[0])
    written = editor(model, apply=apply, on_worse="ignore", **UPHILL).edit(FACTS[0])
    (now,) = losses(model, FACTS[0])
    assert now > was + 0.05  # or there would be nothing to refuse
    written.rollback()

    with pytest.raises(WorseError) as refused:
        editor(model, apply=apply, **UPHILL).edit(FACTS[0])

    assert f"'Rome' ({was:.2f} before, {now:.2f} after)" in str(refused.value)
    assert_unchanged(model, before)
    assert losses(model, FACTS[0]) == [was]
    assert Ledger.of(model).is_empty


def test_one_that_makes_its_target_more_likely_is_written() -> None:
    model = toy_model("llama")
    (was,) = losses(model, FACTS[0])
    result = editor(model, **DOWNHILL).edit(FACTS[0])
    assert losses(model, FACTS[0]) == pytest.approx(result.losses_after, rel=1e-3)
    assert result.losses_after is not None
    assert result.losses_after[0] < was == pytest.approx(result.losses[0], rel=1e-3)


def test_with_warn_it_is_written_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = toy_model("llama")
    before = losses(model, FACTS[0])
    with caplog.at_level(logging.WARNING):
        editor(model, on_worse="warn", **UPHILL).edit(FACTS[0])
    assert losses(model, FACTS[0]) > before
    assert "1 of 1 targets are less likely than before" in caplog.text
    assert "on_worse: warn" in caplog.text


def test_with_ignore_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("llama")
    one, other = editor(model, on_worse="ignore", **UPHILL), editor(model, **DOWNHILL)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert one.edit(FACTS[0]).losses_after is None
    ignoring = len(calls)
    other.edit(FACTS[1])
    assert len(calls) - ignoring == ignoring + 1  # one forward pass is what looking costs


def test_one_worse_target_of_a_batch_refuses_all_and_is_named() -> None:
    model = toy_model("llama")
    before = weights(model)
    asked = [FACTS[0], FACTS[1]]
    strong = editor(model, aggregate="sum", **UPHILL)
    with pytest.raises(WorseError, match=r"of 2 targets are less likely"):
        strong.edit(asked)
    assert_unchanged(model, before)


def test_a_refused_edit_leaves_earlier_ones_and_is_not_in_the_journal(tmp_path: Any) -> None:
    model = toy_model("llama")
    journal = Journal(tmp_path / "edits").apply_to(model)
    journal.add(editor(model, **DOWNHILL).edit(FACTS[0]))
    held = weights(model)
    with pytest.raises(WorseError):
        journal.add(editor(model, **UPHILL).edit(FACTS[1]))
    assert_unchanged(model, held)
    assert journal.applied == [1]


def test_a_target_that_is_certain_already_may_lose_what_rounding_takes() -> None:
    from easyedit_mend_parallel.method.worse import refuse_worse

    asked = as_requests(FACTS[:2])
    refuse_worse(asked, [1e-4, 2.0], [9e-3, 1.0], "refuse")
    with pytest.raises(WorseError, match="1 of 2"):
        refuse_worse(asked, [1e-4, 2.0], [2e-2, 1.0], "refuse")
    with pytest.raises(WorseError, match="nan after"):
        refuse_worse(asked, [1.0, 2.0], [0.5, float("nan")], "refuse")


def test_another_word_is_refused() -> None:
    with pytest.raises(HparamsError, match="on_worse is 'refused'; it has to be 'refuse'"):
        toy_hparams(["w"], on_worse="refused")
