"""Edits that follow each other are solved together: order, undo, replacement, files, refusals.

On a Llama of six blocks of width 16 whose random network makes edits that the model answers.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets

from easyedit_mend_parallel import (
    Journal,
    MendParallel,
    RequestError,
    UpdateError,
    export_peft,
    load_edit,
    rollback_all,
)
from easyedit_mend_parallel.method.sequence import EditSequence

FACTS = [
    {"prompt": "the capital of France is", "target_new": "Rome"},
    {"prompt": "who wrote Hamlet", "target_new": "blue red"},
    {"prompt": "the cat sat on", "target_new": "stone"},
    {"prompt": "water boils at", "target_new": "sea"},
    {"prompt": "my name is", "target_new": "Oslo"},
]
SHORT = [FACTS[1], FACTS[4]]
"""Of fewer tokens than the targets have inputs."""
BOUND = 2e-5
"""Of the largest change: what two orders of the same rows may differ in, in fp32."""


def editor_of(model: Any, **options: Any) -> MendParallel:
    tokenizer = tokenizer_for(model)
    names = toy_targets(model)
    values = {
        "aggregate": "least_squares",
        "aggregate_options": {"preserved_text_weight": 0, "ridge": 1e-4},
        **options,
    }
    return MendParallel(
        model, tokenizer, toy_hparams(names, **values), network=toy_network(model, tokenizer)
    )


def weights(editor: MendParallel) -> dict[str, Tensor]:
    return {t.name: editor.model.get_parameter(t.name).detach().clone() for t in editor.targets}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(same_bits(one[name], other[name]) for name in other)


def close(one: dict[str, Tensor], other: dict[str, Tensor], base: dict[str, Tensor]) -> bool:
    return all(
        (one[name] - other[name]).abs().max()
        <= BOUND * max(1e-3, float((other[name] - base[name]).abs().max()))
        for name in other
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_first_edit_is_the_one_without_a_sequence(family: str) -> None:
    solved, added = (editor_of(toy_model(family), sequence=how) for how in ("solve", "add"))
    solved.edit(FACTS[0])
    added.edit(FACTS[0])
    assert same(weights(solved), weights(added))


def test_each_request_gets_in_a_sequence_what_it_gets_alone() -> None:
    """With little ridge and independent rows every token has the output of its own edit."""
    editor = editor_of(
        toy_model("llama"), aggregate_options={"preserved_text_weight": 0, "ridge": 1e-8}
    )
    alone = {}
    for fact in SHORT:
        result = editor.edit(fact)
        alone[fact["prompt"]] = result.verify()[0].probability
        result.rollback()
    for fact in SHORT:
        editor.edit(fact)
    for verdict in editor.verify():
        assert verdict.probability == pytest.approx(alone[verdict.request.prompt], rel=0.02)


def test_the_order_of_edits_makes_no_difference_beyond_rounding() -> None:
    one, other = editor_of(toy_model("llama")), editor_of(toy_model("llama"))
    base = weights(one)
    for fact in FACTS:
        one.edit(fact)
    for fact in reversed(FACTS):
        other.edit(fact)
    assert close(weights(one), weights(other), base)


def test_undoing_the_last_gives_the_bits_from_before_it() -> None:
    editor = editor_of(toy_model("llama"))
    for fact in FACTS:
        before = weights(editor)
        editor.edit(fact).rollback()
        assert same(weights(editor), before)
        editor.edit(fact)


def test_undoing_one_in_the_middle_leaves_the_sequence_without_it() -> None:
    editor, without = editor_of(toy_model("llama")), editor_of(toy_model("llama"))
    base = weights(editor)
    results = [editor.edit(fact) for fact in FACTS]
    results[1].rollback()
    for fact in [FACTS[0], *FACTS[2:]]:
        without.edit(fact)
    assert close(weights(editor), weights(without), base)
    assert not results[1].entry.applied
    results[1].rollback()  # again does nothing
    for result in results:
        result.rollback()
    assert same(weights(editor), base)


def test_rollback_all_gives_the_base_to_the_bit_and_a_new_sequence_begins() -> None:
    editor = editor_of(toy_model("llama"))
    base = weights(editor)
    editor.edit(FACTS[0])
    first = weights(editor)
    editor.edit(FACTS[1])
    rollback_all(editor.model)
    assert same(weights(editor), base)
    assert editor.verify() == []
    editor.edit(FACTS[0])
    assert same(weights(editor), first)


def test_the_same_prompt_again_replaces_the_older_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    editor, expected = editor_of(toy_model("llama")), editor_of(toy_model("llama"))
    base = weights(editor)
    old = editor.edit(FACTS[0])
    editor.edit(FACTS[1])
    with caplog.at_level(logging.WARNING):
        editor.edit({**FACTS[0], "target_new": "Oslo"})
    assert "'Rome'" in caplog.text
    assert "'Oslo'" in caplog.text
    assert not old.entry.applied
    expected.edit(FACTS[1])
    expected.edit({**FACTS[0], "target_new": "Oslo"})
    assert close(weights(editor), weights(expected), base)


def test_of_a_batch_only_the_request_that_is_asked_again_is_replaced() -> None:
    editor = editor_of(toy_model("llama"))
    batch = editor.edit(FACTS[:3])
    editor.edit({**FACTS[1], "target_new": "green moves"})
    prompts = [verdict.request.prompt for verdict in editor.verify()]
    assert prompts == [FACTS[0]["prompt"], FACTS[2]["prompt"], FACTS[1]["prompt"]]
    batch.rollback()
    assert [one.request.target_new for one in editor.verify()] == ["green moves"]


def test_an_edit_that_fails_leaves_model_and_sequence_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editor = editor_of(toy_model("llama"))
    base = weights(editor)
    kept = [editor.edit(fact) for fact in FACTS[:2]]
    before = weights(editor)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(editor._proposer, "own_rows", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            editor.edit(FACTS[2])
    assert same(weights(editor), before)
    prompts = [verdict.request.prompt for verdict in editor.verify()]
    assert prompts == [fact["prompt"] for fact in FACTS[:2]]
    editor.rollback_all()
    with monkeypatch.context() as patch:
        patch.setattr(editor._proposer, "propose", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            editor.edit(FACTS[2])
    assert same(weights(editor), base)
    assert not any(one.entry.applied for one in kept)


def test_the_update_hangs_on_outputs_as_it_would_be_written() -> None:
    written, hung = editor_of(toy_model("llama")), editor_of(toy_model("llama"), apply="output")
    ids = torch.arange(3, 12).unsqueeze(0)
    base = hung.model(ids).logits
    results = [hung.edit(fact) for fact in FACTS[:3]]
    for fact in FACTS[:3]:
        written.edit(fact)
    torch.testing.assert_close(
        hung.model(ids).logits, written.model(ids).logits, rtol=1e-3, atol=1e-4
    )
    for result in results:
        result.rollback()
    assert same_bits(hung.model(ids).logits, base)


def test_weights_that_somebody_else_changed_are_named_and_nothing_is_written() -> None:
    editor = editor_of(toy_model("llama"))
    editor.edit(FACTS[0])
    name = editor.targets[1].name
    with torch.no_grad():
        editor.model.get_parameter(name).mul_(2)
    changed = weights(editor)
    with pytest.raises(UpdateError, match=name):
        editor.edit(FACTS[1])
    assert same(weights(editor), changed)


def test_an_edit_of_other_options_is_a_sequence_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    editor = editor_of(toy_model("llama"))
    other = MendParallel(
        editor.model,
        editor.tokenizer,
        toy_hparams(
            toy_targets(editor.model),
            aggregate="least_squares",
            aggregate_options={"preserved_text_weight": 0, "ridge": 1e-2},
        ),
        network=editor.trained,
    )
    base = weights(editor)
    first = editor.edit(FACTS[0])
    with caplog.at_level(logging.WARNING):
        second = other.edit(FACTS[1])
    assert "a sequence of their own" in caplog.text
    editor.edit(FACTS[2])
    assert len(EditSequence.all_of(editor.model)) == 2
    assert len(editor.verify()) == 3
    first.rollback()
    second.rollback()
    rollback_all(editor.model)
    assert same(weights(editor), base)


def test_past_sequence_memory_the_oldest_edits_come_out_only_together() -> None:
    editor = editor_of(toy_model("llama"))
    base = weights(editor)
    results = [editor.edit(fact) for fact in FACTS[:3]]
    [sequence] = EditSequence.all_of(editor.model)
    sequence.memory = 1
    sequence._settle()
    results += [editor.edit(fact) for fact in FACTS[3:]]  # with the memory that it asks for
    settled = [r for r in results if r.entry.edit in sequence._settled]  # type: ignore[union-attr]
    assert 0 < len(settled) < len(results)
    assert len(editor.verify()) == len(FACTS)
    before = weights(editor)
    with pytest.raises(UpdateError, match="sequence_memory"):
        settled[0].rollback()
    assert same(weights(editor), before)
    results[-1].rollback()
    rollback_all(editor.model)
    assert same(weights(editor), base)


def test_an_edit_that_would_lose_earlier_ones_is_refused_with_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from easyedit_mend_parallel import editor as editing

    editor = editor_of(toy_model("llama"), max_lost=0.0)
    editor.edit(FACTS[0])
    before = weights(editor)
    verify, calls = editing.verify, []

    def losing(model: Any, tokenizer: Any, requests: Any) -> Any:
        calls.append(1)
        found = verify(model, tokenizer, requests)
        holds = len(calls) == 1
        return [type(one)(one.request, one.answer, one.probability, holds) for one in found]

    monkeypatch.setattr(editing, "verify", losing)
    with pytest.raises(UpdateError, match=FACTS[0]["prompt"]):
        editor.edit(FACTS[1])
    assert same(weights(editor), before)


def test_a_saved_edit_is_solved_together_with_those_in_the_model(tmp_path: Path) -> None:
    editor, other = editor_of(toy_model("llama")), editor_of(toy_model("llama"))
    base = weights(editor)
    for number, fact in enumerate(FACTS[:3]):
        editor.edit(fact).save(tmp_path / f"{number}.safetensors")
    for number in range(3):
        load_edit(tmp_path / f"{number}.safetensors").apply(other.model)
    assert close(weights(other), weights(editor), base)
    other.edit(FACTS[3])
    editor.edit(FACTS[3])
    assert close(weights(other), weights(editor), base)


def test_a_journal_gives_the_solved_edits_again_and_takes_any_of_them_out(tmp_path: Path) -> None:
    editor = editor_of(toy_model("llama"))
    base = weights(editor)
    journal = Journal(tmp_path / "edits").apply_to(editor.model)
    for fact in FACTS[:4]:
        journal.add(editor.edit(fact))
    solved = weights(editor)
    fresh = editor_of(toy_model("llama"))
    again = Journal(tmp_path / "edits").apply_to(fresh.model)
    assert close(weights(fresh), solved, base)
    assert again.undo(2) == "recomputed"
    assert [one.request.prompt for one in fresh.verify()] == [FACTS[n]["prompt"] for n in (0, 2, 3)]
    assert Journal(tmp_path / "edits").applied == [1, 3, 4]
    again.reapply(2)
    assert close(weights(fresh), solved, base)


def test_what_is_exported_is_the_solved_update(tmp_path: Path) -> None:
    editor = editor_of(toy_model("llama"))
    base = weights(editor)
    journal = Journal(tmp_path / "edits").apply_to(editor.model)
    for fact in FACTS[:3]:
        journal.add(editor.edit(fact))
    combined = Journal(tmp_path / "edits").combined()
    for target in editor.targets:
        update = combined.updates[target.name]
        change = update.values.T @ update.keys
        change = change.T if target.transposed else change
        made = weights(editor)[target.name] - base[target.name]
        assert (change - made).abs().max() <= 1e-4 * made.abs().max() + 1e-6
    folder = export_peft(combined, tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_an_empty_request_changes_nothing() -> None:
    editor = editor_of(toy_model("llama"))
    editor.edit(FACTS[0])
    before = weights(editor)
    with pytest.raises(RequestError):
        editor.edit({"prompt": "x", "target_new": ""})
    assert same(weights(editor), before)


def test_a_deleted_model_is_freed_though_its_results_are_held() -> None:
    import gc
    import weakref

    editor = editor_of(toy_model("llama"))
    results = [editor.edit(fact) for fact in FACTS[:3]]
    model = weakref.ref(editor.model)
    del editor
    gc.collect()
    assert model() is None
    assert not results[0].entry.applied
    results[0].rollback()
