"""Claims about edits that are solved even by themselves (`solve_single`): what they are, and that
they are edits like others. On toy models; nothing is claimed of how well they keep other text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scoped_toys import editor_of as scoped_editor
from test_growing_system import matrix
from test_solved_training import SOLVED
from toys import (
    assert_unchanged,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)
from trained.runs import facts

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, load_edit
from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.least_squares import PreservedRows
from easyedit_mend_parallel.method.mend import own_rows, propose
from easyedit_mend_parallel.training.preparation import make_solver, solve_options

REQUESTS = [example.request for example in facts()[:3]]
WEIGHT = 0.5


def editor_of(model: Any, solve_single: bool = True, **options: Any) -> MendParallel:
    tokenizer = toy_tokenizer()
    values = toy_hparams(toy_targets(model)).to_dict() | {
        "aggregate": "least_squares",
        "aggregate_options": {"preserved_text_weight": WEIGHT, "solve_single": solve_single},
    }
    hparams = MENDParallelHyperParams(**values | options)
    return MendParallel(model, tokenizer, hparams, network=toy_network(model, tokenizer))


def gram_of(text: PreservedRows) -> torch.Tensor:
    if text.gram is not None:
        return text.gram
    assert text.rows is not None
    return text.rows.double().T @ text.rows.double()


def prompt_of(editor: MendParallel, request: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([editor.tokenizer(request.prompt)["input_ids"]])}


def test_one_edit_is_the_solution_of_its_own_rows_and_the_preserved_text() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    with torch.no_grad():
        batch = make_batch(model, editor.tokenizer, REQUESTS[:1])
        own = editor._proposer._own_updates(REQUESTS[:1])
        rows = own_rows(model, editor.targets, batch, own, limit=1 << 30).rows
    preserved = editor._proposer._gathered_inputs()
    result = editor.edit(REQUESTS[0])

    assert preserved is not None
    for target in editor.targets:
        x, d = rows[target.name].rows(editor.aggregate.label_weight)
        text = preserved.of[target.name]
        gram = gram_of(text)
        ridge = editor.aggregate.ridge * text.mean_square * torch.eye(len(gram))
        expected = torch.linalg.solve(x.T @ x + WEIGHT * gram + ridge, x.T @ d).T
        found = matrix(result.updates[target.name])
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_one_edit_moves_the_preserved_text_less_than_its_own_update_would() -> None:
    moved = []
    for solve_single in (True, False):
        model = toy_model("llama")
        editor = editor_of(model, solve_single)
        preserved = editor._proposer._gathered_inputs()
        updates = editor.edit(REQUESTS[0]).updates
        assert preserved is not None
        change = 0.0
        for name, update in updates.items():
            m = matrix(update)
            change += float((m @ gram_of(preserved.of[name]) * m).sum())
        moved.append(change)
    assert moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize("sequence", ["solve", "add"])
def test_it_is_the_same_edit_however_edits_are_put_together(sequence: str) -> None:
    model = toy_model("llama")
    options = {"preserved_text_weight": WEIGHT, "solve_single": True, "passes": 1}
    editor = editor_of(model, sequence=sequence, aggregate_options=options)
    base = weights(model)
    result = editor.edit(REQUESTS[0])
    found = weights(model)
    result.rollback()
    assert_unchanged(model, base)

    other = editor_of(again := toy_model("llama"))
    other.edit(REQUESTS[0])
    bound = 1e-6 if sequence == "solve" else 2e-2  # the ridge of a batch is another
    assert_near(base, found, weights(again), bound)


def test_what_is_left_of_a_row_of_edits_is_the_edit_by_itself(tmp_path: Path) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    base, first = weights(model), editor.edit(REQUESTS[0])
    alone = weights(model)
    second = editor.edit(REQUESTS[1])
    path = second.save(tmp_path / "second.safetensors")
    second.rollback()
    assert_unchanged(model, alone)
    first.rollback()
    load_edit(path).apply(model)
    applied = weights(model)

    other = editor_of(again := toy_model("llama"))
    other.edit(REQUESTS[1])
    assert_near(base, applied, weights(again))


def test_a_group_of_one_is_solved_in_training_as_in_editing() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    model.requires_grad_(False)
    editor, texts = editor_of(model), Texts(model, tokenizer)
    aggregate_options = {"preserved_text_weight": WEIGHT, "solve_single": True}
    values = toy_hparams(toy_targets(model)).to_dict() | SOLVED
    hparams = MENDParallelTrainingHparams(**values | {"aggregate_options": aggregate_options})
    solver = make_solver(texts, editor.targets, {}, solve_options(hparams), hparams)
    batch = texts.batch([Text(one.prompt, one.target_text) for one in REQUESTS[:2]])
    own = propose(model, editor.targets, batch, toy_network(model, tokenizer)).updates
    assert solver is not None
    in_training = solver.solved([batch], own, [1, 1])

    for number, request in enumerate(REQUESTS[:2]):
        result = editor.edit(request)
        for name, update in result.updates.items():
            found, expected = matrix(in_training[name].of_request(number)), matrix(update)
            assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
        result.rollback()


def test_scoped_edits_keep_their_own_updates() -> None:
    found = []
    for solve_single in (True, False):
        model = toy_model("llama")
        editor = scoped_editor(model, aggregate_options={"solve_single": solve_single})
        result = editor.edit(REQUESTS[0])
        found.append({name: matrix(update) for name, update in result.updates.items()})
    assert all(torch.equal(update, found[1][name]) for name, update in found[0].items())


def test_an_edit_with_ready_inputs_is_solved_too() -> None:
    found = []
    for ready in (True, False):
        model = toy_model("llama")
        editor = editor_of(model, sequence="add")
        inputs = prompt_of(editor, REQUESTS[0]) if ready else None
        updates = editor.edit(REQUESTS[0], inputs=inputs).updates
        found.append({name: matrix(update) for name, update in updates.items()})
    for name, update in found[0].items():
        assert (update - found[1][name]).abs().max() <= 1e-4 * update.abs().max()


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_value_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(HparamsError, match=r"solve_single is .*true or false"):
        editor_of(toy_model("llama"), solve_single=value)


def assert_near(
    base: dict[str, torch.Tensor],
    one: dict[str, torch.Tensor],
    other: dict[str, torch.Tensor],
    bound: float = 1e-3,
) -> None:
    largest = max(float((one[name] - base[name]).abs().max()) for name in base)
    assert largest > 0
    assert max(float((one[name] - other[name]).abs().max()) for name in base) <= bound * largest
