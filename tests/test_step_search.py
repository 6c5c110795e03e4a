"""How far an edit without a trained network goes: downhill, the shortest step that brings the
answer, within a norm, and nothing is written before it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from offloads import offloaded
from quantized import KINDS as QUANTIZED
from quantized import quantized_model, wide_model
from toys import (
    REQUESTS,
    assert_unchanged,
    same_bits,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)
from untrained_toys import ONE, TWO, answers, asked, editor

from easyedit_mend_parallel import (
    UpdateError,
)
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.method.step_search import downhill, longest, search_steps
from easyedit_mend_parallel.weights.norm import _estimated, weight_norm
from easyedit_mend_parallel.weights.stores import resident
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


def test_no_weight_is_written_before_a_step_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    one = editor()
    before = weights(one.model)
    trials = 0
    answered = Batch.answered

    def watched(batch: Batch, model: Any) -> Any:
        nonlocal trials
        if not committed:
            assert_unchanged(model, before)
            trials += 1
        return answered(batch, model)

    committed: list[int] = []
    commit = resident.ResidentStaged.commit
    monkeypatch.setattr(Batch, "answered", watched)
    monkeypatch.setattr(
        resident.ResidentStaged, "commit", lambda s: (committed.append(1), commit(s))[1]
    )
    one.edit(ONE)

    assert trials > 1
    assert committed


def test_the_step_is_about_the_shortest_one() -> None:
    one = editor()
    result = one.edit(ONE)
    result.rollback()
    batch = make_batch(one.model, one.tokenizer, asked(ONE))
    by_name = {target.name: target for target in one.targets}

    def brings_the_answer(factor: float) -> bool:
        step = torch.tensor([factor])
        found = search_steps(one.model, by_name, batch, result.updates, step, step)
        return bool(found.answered)

    assert brings_the_answer(1.0)
    assert not brings_the_answer(0.49)


def test_a_margin_goes_past_the_first_answer_and_no_further_than_the_norm_or_the_answer() -> None:
    def edit(request: dict[str, str] = ONE, **options: Any) -> Any:
        one = editor(**options)
        norms = {target.name: weight_norm(one.model, target) for target in one.targets}
        result = one.edit(request)
        assert answers(one, request) == [True]
        return max(
            float(update.norm()) / weight_of
            for update, weight_of in zip(result.updates.values(), norms.values(), strict=True)
        )

    shortest = edit()
    assert edit(step_margin=1.5) == pytest.approx(1.5 * shortest, rel=1e-3)
    assert edit(step_margin=1.5, max_relative_norm=1.2 * shortest) == pytest.approx(
        1.2 * shortest, rel=1e-3
    )
    # Twice as far this answer is lost again: the shortest step stays.
    fragile = {"prompt": "who wrote Hamlet", "target_new": "mat"}
    assert edit(fragile, step_margin=2.0) == pytest.approx(edit(fragile), rel=1e-3)


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_an_answer_out_of_reach_is_an_error_that_says_so_and_nothing_is_changed(
    apply: str,
) -> None:
    one = editor(max_relative_norm=1e-5, apply=apply)
    before, logits = weights(one.model), one.model(torch.arange(4, 9)[None]).logits

    with pytest.raises(UpdateError, match="within max_relative_norm") as raised:
        one.edit(TWO)

    for request in TWO:
        assert f"{request['prompt']!r} -> {request['target_new']!r}" in str(raised.value)
    assert "raise max_relative_norm" in str(raised.value)
    assert_unchanged(one.model, before)
    assert same_bits(one.model(torch.arange(4, 9)[None]).logits, logits)
    assert not one.model.model.layers[-1].mlp.up_proj._forward_hooks


def test_no_step_is_longer_than_the_norm_that_the_user_sets() -> None:
    free = editor()
    updates = free.edit(ONE).updates
    free.rollback_all()
    norms = {target.name: weight_norm(free.model, target) for target in free.targets}
    needed = max(float(update.norm()) / norms[name] for name, update in updates.items())

    for share in (0.6, 1.01):  # the step just found is less than twice the shortest
        one = editor(max_relative_norm=needed * share)
        try:
            result = one.edit(ONE)
        except UpdateError:
            assert share < 1
            continue
        longest_step = max(float(u.norm()) / norms[n] for n, u in result.updates.items())
        assert longest_step <= needed * share * (1 + 1e-4)


def test_every_part_is_turned_downhill_each_request_by_itself(tmp_path: Path) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    targets = find_targets(model, toy_targets(model))
    network = toy_network(model, tokenizer)  # far from the identity: some parts go up, some down
    rows, _ = capture(model, targets, make_batch(model, tokenizer, asked(REQUESTS)))
    updates = {name: update.detach() for name, update in network(rows).items()}

    turned, slopes = downhill(updates, rows, len(REQUESTS))

    total, ways = torch.zeros(len(REQUESTS)), set()
    for name, update in turned.items():
        for number in range(len(REQUESTS)):
            mine = update.request == number
            gradient = rows[name].delta[mine].T @ rows[name].x[mine]
            slope = ((update.values[mine].T @ update.keys[mine]) * gradient).sum()
            assert slope < 0
            total[number] += slope
            ways.add(torch.equal(update.values[mine], updates[name].values[mine]))
    torch.testing.assert_close(slopes, total)
    assert ways == {True, False}


def test_the_slope_is_what_a_small_step_changes_the_loss_by() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    targets = find_targets(model, toy_targets(model))
    batch = make_batch(model, tokenizer, asked(REQUESTS))
    rows, losses = capture(model, targets, batch)
    raw = {n: LowRankUpdate(r.x.float(), r.delta.float(), r.request) for n, r in rows.items()}
    turned, slopes = downhill(raw, rows, len(REQUESTS))

    small = 1e-3
    by_name = {target.name: target for target in targets}
    scaled = {n: LowRankUpdate(u.keys, small * u.values, u.request) for n, u in turned.items()}
    with torch.no_grad(), attached(model, by_name, scaled, batch.request):
        after = batch.losses_on(model)
    torch.testing.assert_close((after - losses) / small, slopes, rtol=0.05, atol=1e-2)


def test_a_request_without_an_update_limits_nothing_and_gets_no_step() -> None:
    rows = LowRankUpdate(torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 0]))
    assert longest({"w": rows}, {"w": 1.0}, 2).tolist() == [
        pytest.approx(1 / float(rows.norm())),
        0.0,
    ]


# How large a weight is


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weight_that_cannot_be_read_is_measured_through_its_layer(family: str) -> None:
    model = toy_model(family)
    for target in find_targets(model, toy_targets(model)):
        true = float(target.layer(model).weight.detach().norm())
        assert weight_norm(model, target) == pytest.approx(true)
        assert _estimated(model, target) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize("kind", ["targets-ram", "targets-dat", "targets-safetensors"])
def test_a_weight_that_is_offloaded_is_measured_and_edited_like_one_that_is_not(
    kind: str, tmp_path: Path
) -> None:
    here = editor(max_relative_norm=0.1)
    away = editor(model=offloaded(toy_model("llama"), kind, tmp_path, "cpu"), max_relative_norm=0.1)
    for one, other in zip(here.targets, away.targets, strict=True):
        assert weight_norm(away.model, other) == pytest.approx(weight_norm(here.model, one))

    expected, result = here.edit(ONE), away.edit(ONE)

    assert answers(away, ONE) == [True]
    for name, update in result.updates.items():
        torch.testing.assert_close(update.values, expected.updates[name].values)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_packed_weight_is_measured_and_its_layers_output_edited(
    kind: str, tmp_path: Path
) -> None:
    one = editor(model=quantized_model(kind, tmp_path), apply="output")
    plain = wide_model()
    for target in one.targets:
        true = float(plain.get_parameter(target.name).detach().norm())
        assert weight_norm(one.model, target) == pytest.approx(true, rel=0.15)

    result = one.edit(ONE)

    assert answers(one, ONE) == [True]
    result.rollback()
    assert answers(one, ONE) == [False]
