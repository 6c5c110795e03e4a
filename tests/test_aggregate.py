"""A batch's one update: least squares from each request's own run is exact where it can be, all
forms of it agree, and what cannot be solved or combined is refused by name with nothing changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any

import pytest
import torch
import toys
from torch import Tensor
from toys import (
    FAMILIES,
    REQUEST,
    assert_unchanged,
    same_bits,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel, RequestError, UpdateError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.forward.trunk import Trunk
from easyedit_mend_parallel.method.least_squares import HOW, Aggregate, System
from easyedit_mend_parallel.method.mend import NetworkUpdates, propose, propose_batch
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate

BATCH = [
    REQUEST,
    {"prompt": "who wrote Hamlet", "target_new": "Shakespeare"},
    {"prompt": "water boils at", "target_new": "one hundred degrees"},
]
"""Prompts that begin with different words, so that no two of their tokens are the same row, and
targets of unequal length. 15 rows."""
WIDE = 40
"""A width at which so many rows are independent."""
EXACT = {"ridge": 1e-10, "preserved_text_weight": 0}


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "WIDTH", WIDE)
    monkeypatch.setattr(toys, "INNER", WIDE + 8)


def tokenizer_of(model: Any, side: str = "right") -> Any:
    return toy_tokenizer(eos=model.config.is_encoder_decoder, side=side)


def editor_of(model: Any, side: str = "right", **values: Any) -> MendParallel:
    tokenizer, names = tokenizer_of(model, side), toy_targets(model)
    network = toy_network(model, tokenizer, names)
    hparams = toy_hparams(names, **{"aggregate": "least_squares", **values})
    return MendParallel(model, tokenizer, hparams, network=network)


def dense(update: LowRankUpdate) -> Tensor:
    return update.values.cpu().double().T @ update.keys.cpu().double()


def assert_same_change(one: LowRankUpdate, other: LowRankUpdate, share: float = 1e-4) -> None:
    expected = dense(other)
    assert (dense(one) - expected).abs().max() <= share * expected.abs().max()


def seen(editor: MendParallel, requests: Any, number: int) -> Tensor:
    """The logits of one request in the padded batch, at the tokens that are counted."""
    batch = make_batch(editor.model, editor.tokenizer, as_requests(requests))
    with torch.no_grad():
        logits = batch.logits(editor.model)
    return logits[number][batch.token_mask(logits.shape[1])[number]]


def apart_from_own_edits(editor: MendParallel) -> float:
    """How far the batch's edit is from each request's own, by what each request sees of it; in
    units of what the own edit changes."""
    own = []
    for number, request in enumerate(BATCH):
        before = seen(editor, BATCH, number)
        result = editor.edit(request)
        after = seen(editor, BATCH, number)
        result.rollback()
        own.append((after, (after - before).abs().max()))
    result = editor.edit(BATCH)
    apart = max(
        float((seen(editor, BATCH, number) - after).abs().max() / change)
        for number, (after, change) in enumerate(own)
    )
    result.rollback()
    return apart


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_request_finds_exactly_its_own_edit_in_the_batch(
    family: str, side: str, wide: None
) -> None:
    editor = editor_of(toy_model(family), side, aggregate_options=EXACT)

    assert apart_from_own_edits(editor) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_with_rows_of_the_unedited_run_it_does_not(family: str, wide: None) -> None:
    editor = editor_of(toy_model(family), aggregate_options={**EXACT, "keys_from": "unedited"})

    assert apart_from_own_edits(editor) > 0.05


@pytest.mark.parametrize("how", ["sum", "mean_loss"])
def test_nor_do_the_other_ways(how: str, wide: None) -> None:
    assert apart_from_own_edits(editor_of(toy_model("llama"), aggregate=how)) > 0.05


@pytest.mark.parametrize("how", HOW)
def test_one_request_is_the_plain_edit_and_no_system_is_solved(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("llama")
    editor = editor_of(model, aggregate=how)
    batch = make_batch(model, editor.tokenizer, as_requests(REQUEST))
    with torch.no_grad():
        expected = propose(model, editor.targets, batch, editor.network).updates
    monkeypatch.delattr(System, "solved")

    for requests in (REQUEST, [REQUEST], [REQUEST, dict(REQUEST)]):
        result = editor.edit(requests)
        for name, update in expected.items():
            assert same_bits(result.updates[name].keys, update.keys)
            assert same_bits(result.updates[name].values, update.values)
        result.rollback()


def test_mean_loss_is_the_edit_of_one_loss_over_all_labels() -> None:
    model = toy_model("llama")
    editor = editor_of(model, aggregate="mean_loss")
    batch = make_batch(model, editor.tokenizer, as_requests(BATCH))
    one = dataclasses.replace(batch, request=torch.zeros(len(BATCH), dtype=torch.long))
    with torch.no_grad():
        expected = propose(model, editor.targets, one, editor.network).updates

    for name, update in editor.edit(BATCH).updates.items():
        assert_same_change(update, expected[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_runs_of_a_batch_pass_the_blocks_below_the_targets_once(family: str) -> None:
    model = toy_model(family)
    editor = editor_of(model, aggregate_options={"preserved_text_weight": 0})
    blocks = model.model.layers if family == "llama" else model.transformer.h
    calls = [0] * len(blocks)

    def count(number: int) -> Any:
        def counted(*_: Any) -> None:
            calls[number] += 1

        return counted

    editor.edit(BATCH).rollback()  # the first batch of a model is also run to check the model
    for number, block in enumerate(blocks):
        block.mlp.register_forward_hook(count(number))
    editor.edit(BATCH)

    assert calls == [1, 1, 1, 3, 3, 3]  # captured, own, and all together for the second pass


def test_where_resuming_changes_what_targets_see_the_model_is_run_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = editor_of(toy_model("llama")).edit(BATCH)
    resumed = Trunk.resumed
    monkeypatch.setattr(Trunk, "resumed", lambda *args: resumed(*args[:-1], 1.1 * args[-1]))

    with caplog.at_level(logging.INFO):
        result = editor_of(toy_model("llama")).edit(BATCH)

    assert "the model is run whole" in caplog.text
    for name, update in result.updates.items():
        assert_same_change(update, expected.updates[name], 1e-3)


# Memory


def together(editor: MendParallel, limit: int, requests: Any = BATCH, **options: Any) -> Any:
    batch = make_batch(editor.model, editor.tokenizer, as_requests(requests))
    with torch.no_grad():
        return propose_batch(
            editor.model,
            editor.targets,
            batch,
            NetworkUpdates(editor.model, editor.network),
            Aggregate(**{"preserved_text_weight": 0, "passes": 1, **options}),
            limit=limit,
        )


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each captured part has."""
    from easyedit_mend_parallel.method import edited_forward, mend

    parts: list[int] = []

    def counted(model: Any, targets: Any, batch: Any) -> Any:
        parts.append(batch.n_requests)
        return capture(model, targets, batch)

    monkeypatch.setattr(mend, "capture", counted)
    monkeypatch.setattr(edited_forward, "capture", counted)
    return parts


@pytest.mark.parametrize(
    "options", [{"how": "sum"}, {"how": "mean_loss"}, {}, {"passes": 3}, {"keys_from": "unedited"}]
)
def test_in_parts_a_batch_gives_the_update_that_it_gives_at_once(
    options: dict[str, Any], forwards: list[int], wide: None
) -> None:
    editor = editor_of(toy_model("llama"))
    at_once = together(editor, 1 << 30, **options)
    assert forwards == [3]

    in_parts = together(editor, 200_000 if "how" in options else 400_000, **options)

    assert len(forwards) > 2
    assert sum(forwards) == 3 + 3 * options.get("passes", 1)
    torch.testing.assert_close(in_parts.losses, at_once.losses)
    for name, update in in_parts.updates.items():
        assert_same_change(update, at_once.updates[name], 1e-3)
        assert update.request.tolist() == at_once.updates[name].request.tolist()


@pytest.mark.parametrize("share", [8, 10**9], ids=["all parts fit", "one part fits"])
def test_hidden_states_of_a_batch_stay_within_its_limit(
    share: int, monkeypatch: pytest.MonkeyPatch, wide: None
) -> None:
    from easyedit_mend_parallel.method import edited_forward, mend

    held: list[int] = []
    calls: list[int] = []

    class Counted(edited_forward.EditedForwards):
        def captured(self, number: int, batch: Any) -> Any:
            found = super().captured(number, batch)
            sizes = [states.nbytes for states in self._states.values()]
            assert sum(sizes[:-1]) <= self._states_limit
            held.append(len(sizes))
            return found

    monkeypatch.setattr(mend, "EditedForwards", Counted)
    monkeypatch.setattr(mend, "STATES_SHARE", share)
    editor = editor_of(toy_model("llama"))
    at_once = together(editor, 1 << 30, passes=2)
    held.clear()
    editor.model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))

    in_parts = together(editor, 400_000, passes=2)

    parts = len(held) // 2
    assert parts > 1
    assert held[-1] == (parts if share == 8 else 1)
    assert len(calls) == (parts if share == 8 else 2 * parts)
    for name, update in in_parts.updates.items():
        assert_same_change(update, at_once.updates[name], 1e-3)


def test_many_requests_are_added_up_by_inputs_and_need_no_row_for_each_token(wide: None) -> None:
    editor = editor_of(toy_model("llama"))
    words = [word for word in toys.WORDS.split() if word not in ("the", "is")]
    many = [
        {"prompt": f"{one} {two} by the sea is", "target_new": "red"}
        for one, two in itertools.pairwise(words)
    ]

    result = editor.edit(many)

    for target in editor.targets:
        assert len(result.updates[target.name].keys) == target.in_features


def test_systems_that_do_not_fit_take_the_other_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "INNER", 400)
    editor = editor_of(toy_model("llama"))
    longer = {"prompt": "my cat sat on the old mat and", "target_new": "never moves"}
    roomy, tight = (
        together(editor, limit, [*BATCH, longer], ridge=1e-2).updates
        for limit in (1 << 30, 1_800_000)
    )

    for target in editor.targets:  # 24 tokens
        by_inputs = target.in_features == toys.WIDTH
        assert len(roomy[target.name].keys) == (16 if by_inputs else 24)
        assert len(tight[target.name].keys) == 24
        assert_same_change(tight[target.name], roomy[target.name], 1e-3)


def test_a_batch_that_fits_in_no_form_is_refused_with_the_figures() -> None:
    model = toy_model("llama")
    editor = editor_of(model, batch_limit="4KiB")
    before = weights(model)

    with pytest.raises(UpdateError, match=r"3 requests need \d+ MiB, and batch_limit is 1 MiB"):
        editor.edit(BATCH)

    assert_unchanged(model, before)


# Bad input


def test_requests_that_contradict_each_other_are_all_named_before_anything_is_computed(
    forwards: list[int],
) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    before = weights(model)
    contradictory = [*BATCH, {**BATCH[1], "target_new": "a cat"}, {**REQUEST, "target_new": "east"}]

    with pytest.raises(RequestError) as caught:
        editor.edit(contradictory)

    assert "requests 1 and 3 want 'Shakespeare' and 'a cat' after 'who wrote Hamlet'" in str(
        caught.value
    )
    assert "requests 0 and 4 want 'Rome and Oslo' and 'east'" in str(caught.value)
    assert forwards == []
    assert_unchanged(model, before)


def test_a_repeated_request_counts_once_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    editor, other = editor_of(toy_model("llama")), editor_of(toy_model("llama"))

    with caplog.at_level(logging.WARNING):
        result = editor.edit([*BATCH, {**BATCH[1], "target_new": " Shakespeare"}])
    expected = other.edit(BATCH)

    assert "request 3 repeats request 1" in caplog.text
    assert [request.prompt for request in result.requests] == [one["prompt"] for one in BATCH]
    assert result.losses == expected.losses
    for name, update in result.updates.items():
        assert same_bits(update.values, expected.updates[name].values)


def test_one_empty_request_refuses_the_whole_batch() -> None:
    model = toy_model("llama")
    before = weights(model)

    with pytest.raises(RequestError, match=r"request 2: target_new is empty"):
        editor_of(model).edit([*BATCH[:2], {"prompt": "water boils at", "target_new": " "}])

    assert_unchanged(model, before)


def test_rows_of_an_edited_output_layer_belong_to_the_right_requests() -> None:
    model = toy_model("llama")
    targets = find_targets(model, ["lm_head.weight", *toy_targets(model)])
    batch = make_batch(model, toy_tokenizer(), as_requests(BATCH))

    captured, _ = capture(model, targets, batch)

    for one in captured.values():
        assert len(one.x) == len(one.request) == batch.labels.numel()
        assert (
            one.request.tolist() == batch.request.repeat_interleave(batch.labels.shape[1]).tolist()
        )
