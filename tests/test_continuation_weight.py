"""Claims about edits that leave the text after a target as it was (`continuation_weight`): which
tokens a system has rows of, what it asks for there, and that such edits are edits like others.
On toy models; nothing is claimed of how well a model goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy_hparams, toy_model, toy_network, toy_targets, toy_tokenizer
from trained.runs import facts

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, load_edit
from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.forward import continuing
from easyedit_mend_parallel.forward.batch import IGNORED, Batch, make_batch
from easyedit_mend_parallel.forward.capture import layer_rows
from easyedit_mend_parallel.forward.continuing import TOKENS, with_continuations
from easyedit_mend_parallel.method.mend import own_rows
from easyedit_mend_parallel.weights.update import attached

REQUESTS = [example.request for example in facts()[:3]]


def batch_of(model: Any, side: str = "right") -> tuple[Batch, Any]:
    tokenizer = toy_tokenizer(side=side)
    return make_batch(model, tokenizer, REQUESTS), tokenizer


def editor_of(model: Any, weight: float, **options: Any) -> MendParallel:
    values = toy_hparams(toy_targets(model)).to_dict() | {
        "aggregate": "least_squares",
        "aggregate_options": {"preserved_text_weight": 0.1, "continuation_weight": weight},
    }
    tokenizer = toy_tokenizer()
    hparams = MENDParallelHyperParams(**(values | options))
    return MendParallel(model, tokenizer, hparams, network=toy_network(model, tokenizer))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def moved_after_target(model: Any, editor: MendParallel, request: Any) -> float:
    """How far an edit moves the outputs of the lowest target for the tokens after its answer, in
    units of how far it moves them for the others."""
    batch, tokenizer = make_batch(model, editor.tokenizer, [request]), editor.tokenizer
    batch = with_continuations(model, tokenizer, batch)
    lowest = editor.targets[:1]
    seen = layer_rows(model, lowest, batch, after=True)[lowest[0].name]
    result = editor.edit(request)
    change = result.updates[lowest[0].name].added(seen.x).norm(dim=1)
    result.rollback()
    return float(change[seen.after].mean() / change[~seen.after].mean())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_goes_on_as_the_model_would_and_its_labels_stay(side: str) -> None:
    model = toy_model("llama")
    batch, tokenizer = batch_of(model, side)
    longer = with_continuations(model, tokenizer, batch)

    for number, request in enumerate(REQUESTS):
        ids = list(tokenizer(request.prompt + request.target_text)["input_ids"])
        live = longer.inputs["attention_mask"][number].bool()
        found = longer.inputs["input_ids"][number][live].tolist()
        expected: list[int] = []
        while len(expected) < TOKENS:
            token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token == model.config.eos_token_id:
                break
            expected.append(token)
        assert found == ids + expected
        kept = longer.labels[number]
        assert kept[kept != IGNORED].equal(batch.labels[number][batch.labels[number] != IGNORED])
        after = longer.after_mask(longer.labels.shape[1])[number]
        assert int(after.sum()) == len(expected) + 1  # and the target's own last token
    assert torch.allclose(longer.losses_on(model), batch.losses_on(model), rtol=1e-4)


def test_a_sequence_that_ends_with_a_special_token_is_not_continued() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(eos=True)
    batch = make_batch(model, tokenizer, REQUESTS)
    longer = with_continuations(model, tokenizer, batch)
    assert longer.inputs["input_ids"].equal(batch.inputs["input_ids"])


def test_a_batch_is_continued_a_few_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("llama")
    batch, tokenizer = batch_of(model)
    whole = with_continuations(model, tokenizer, batch)
    calls, generate = [], model.generate
    monkeypatch.setattr(continuing, "AT_ONCE", 2)
    monkeypatch.setattr(model, "generate", lambda **asked: calls.append(1) or generate(**asked))

    in_parts = with_continuations(model, tokenizer, batch)

    assert len(calls) == 2
    assert in_parts.inputs["input_ids"].equal(whole.inputs["input_ids"])


def test_rows_after_the_target_ask_for_no_change_and_see_the_edit_only_before_it() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    editor = editor_of(model, 4.0)
    batch = with_continuations(model, tokenizer, make_batch(model, tokenizer, REQUESTS[:1]))
    own = editor._proposer._own_updates(REQUESTS[:1])
    with torch.no_grad():
        found = own_rows(model, editor.targets, batch, own, limit=1 << 30, continuation_weight=4.0)
        by_name = {target.name: target for target in editor.targets}
        still = batch.after_mask(batch.labels.shape[1])
        with attached(model, by_name, found.updates, batch.request, still):
            seen = layer_rows(model, editor.targets, batch, after=True)

    for name, rows in found.rows.items():
        after = seen[name].after
        assert 1 < int(after.sum()) < len(after)
        x, d = rows.rows(1.0)
        assert d[after].abs().max() == 0
        assert d[~after].abs().max() > 0
        torch.testing.assert_close(x[after].float(), 2 * seen[name].x[after], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(x[~after].float(), seen[name].x[~after], rtol=1e-2, atol=1e-3)


def test_a_single_edit_moves_the_text_after_its_target_less() -> None:
    with_it = moved_after_target(m := toy_model("llama"), editor_of(m, 100.0), REQUESTS[0])
    without = moved_after_target(m := toy_model("llama"), editor_of(m, 0.0), REQUESTS[0])
    assert with_it < 0.5 * without


def test_such_edits_in_a_row_do_not_depend_on_their_order_and_are_undone_to_the_bit() -> None:
    model = toy_model("llama")
    base, editor = weights(model), editor_of(model, 4.0)
    forward = [editor.edit(request) for request in REQUESTS]
    one = weights(model)
    forward[1].rollback()
    without_second = weights(model)
    editor.rollback_all()
    assert all(torch.equal(base[name], now) for name, now in weights(model).items())

    for request in reversed(REQUESTS):
        editor.edit(request)
    other = weights(model)
    editor.rollback_all()
    kept = [editor.edit(REQUESTS[0]), editor.edit(REQUESTS[2])]
    _assert_near(base, one, other)
    _assert_near(base, without_second, weights(model))
    assert kept[0].entry.applied


def test_the_first_edit_is_what_is_left_when_the_others_are_undone() -> None:
    model = toy_model("llama")
    editor = editor_of(model, 4.0)
    first = editor.edit(REQUESTS[0])
    alone = weights(model)
    second = editor.edit(REQUESTS[1])
    second.rollback()
    assert all(torch.equal(alone[name], now) for name, now in weights(model).items())
    third = editor.edit(REQUESTS[2])
    first.rollback()
    editor.rollback_all()
    del third


def test_a_later_edit_is_saved_as_what_it_is_by_itself(tmp_path: Path) -> None:
    model = toy_model("llama")
    base, editor = weights(model), editor_of(model, 4.0)
    editor.edit(REQUESTS[0])
    second = editor.edit([REQUESTS[1], REQUESTS[2]])
    path = second.save(tmp_path / "second.safetensors")
    editor.rollback_all()
    load_edit(path).apply(model)
    applied = weights(model)
    editor.rollback_all()
    again = toy_model("llama")
    other = editor_of(again, 4.0)
    for request in REQUESTS[1:]:
        other.edit(request)

    assert any(not torch.equal(base[name], now) for name, now in applied.items())
    _assert_near(base, applied, weights(again))


def test_a_batch_is_solved_with_what_follows_its_targets() -> None:
    found = []
    for weight in (0.0, 100.0):
        model = toy_model("llama")
        editor = editor_of(model, weight)
        batch = with_continuations(
            model, editor.tokenizer, make_batch(model, editor.tokenizer, REQUESTS)
        )
        lowest = editor.targets[:1]
        seen = layer_rows(model, lowest, batch, after=True)[lowest[0].name]
        update = editor.edit(REQUESTS).updates[lowest[0].name]
        change = update.added(seen.x).norm(dim=1)
        found.append(float(change[seen.after].mean() / change[~seen.after].mean()))
    assert found[1] < 0.6 * found[0]


def test_an_encoder_decoder_model_is_refused() -> None:
    model = toy_model("t5")
    with pytest.raises(HparamsError, match="continuation_weight is for decoder-only models"):
        editor_of(model, 1.0)


def _assert_near(
    base: dict[str, torch.Tensor], one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    largest = max(float((one[name] - base[name]).abs().max()) for name in base)
    apart = max(float((one[name] - other[name]).abs().max()) for name in base)
    assert apart <= 1e-3 * largest
