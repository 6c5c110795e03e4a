"""Claims about training through the solve: how a step's edits are grouped, solved and learnt from.
On toy models; nothing is claimed of how well it is learnt."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy_hparams, toy_model, toy_network, toy_targets, toy_tokenizer
from trained.runs import facts, state, trainer

from easyedit_mend_parallel import MendParallel, load_archive
from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.evaluation.data import LocalityText
from easyedit_mend_parallel.forward.capture import layer_rows
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.hparams import MENDParallelHyperParams, MENDParallelTrainingHparams
from easyedit_mend_parallel.method.growing_system import GrowingSystem, SystemOptions
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.least_squares import PreservedRows
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.method.sequence import EditSequence
from easyedit_mend_parallel.training.objective import Measured, Measuring, measure_step
from easyedit_mend_parallel.training.preparation import make_solver, solve_options
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.training.solved_step import measure_solved_step
from easyedit_mend_parallel.training.solving import StepSolver, group_sizes
from easyedit_mend_parallel.weights.target import find_targets

SOLVED: dict[str, Any] = {
    "solved_edits": 4,
    "aggregate": "least_squares",
    "aggregate_options": {"preserved_text_weight": 0.1},
}


def solver_of(
    texts: Texts, continued: Mapping[Text, Text] | None = None, weight: float = 0.0
) -> StepSolver:
    options = SOLVED["aggregate_options"] | {"continuation_weight": weight}
    values = toy_hparams(toy_targets(texts.model)).to_dict() | SOLVED
    hparams = MENDParallelTrainingHparams(**values | {"aggregate_options": options})
    targets = find_targets(texts.model, toy_targets(texts.model))
    found = make_solver(texts, targets, continued or {}, solve_options(hparams), hparams)
    assert found is not None
    return found


HOW = Measuring(cedit=1.0, cloc=1.0, locality_positions=9)


def samples() -> list[Sample]:
    return [
        Sample(e, e.rephrases, (LocalityText("the sun rises in the"),), e.request.prompt)
        for e in facts()[:4]
    ]


def alone(texts: Texts, network: Hypernetwork) -> Measured:
    targets = find_targets(texts.model, toy_targets(texts.model))
    return measure_step(texts, targets, network, samples(), HOW)


def together(
    texts: Texts, network: Hypernetwork, sizes: list[int], at_once: int = 4, **options: Any
) -> Measured:
    targets = find_targets(texts.model, toy_targets(texts.model))
    parts = [samples()[start : start + at_once] for start in range(0, 4, at_once)]
    given = (texts, targets, network, parts, HOW, solver_of(texts), sizes)
    return measure_solved_step(*given, **options)


def gradients(network: Hypernetwork, found: Measured) -> list[torch.Tensor]:
    return list(torch.autograd.grad(found.loss, list(network.mend.parameters())))


def test_steps_have_groups_of_one_size_and_small_ones_are_frequent() -> None:
    found = [group_sizes(16, 5, f"seed {n}") for n in range(400)]

    assert all(sum(sizes) == 16 for sizes in found)
    assert all(len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0] for sizes in found)
    often = [sum(sizes[0] == size for sizes in found) for size in (1, 2, 3, 4, 5)]
    assert often == sorted(often, reverse=True)
    assert 0 < often[-1] < often[0] < 200
    assert group_sizes(16, 5, "seed 7") == found[7]
    assert group_sizes(3, 1, "any") == [1, 1, 1]


def test_edits_in_groups_of_one_are_edits_by_themselves() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    texts, network = Texts(model, tokenizer), toy_network(model, tokenizer)
    by_themselves, in_groups = alone(texts, network), together(texts, network, [1, 1, 1, 1])

    assert torch.equal(by_themselves.edit, in_groups.edit)
    assert torch.equal(by_themselves.locality, in_groups.locality)
    one, other = gradients(network, by_themselves), gradients(network, in_groups)
    for expected, found in zip(one, other, strict=True):
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_group_is_solved_as_a_sequence_of_its_edits_is() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    network, requests = toy_network(model, tokenizer), [e.request for e in facts()[:3]]
    hparams = MENDParallelHyperParams(
        **toy_hparams(toy_targets(model)).to_dict()
        | {name: SOLVED[name] for name in ("aggregate", "aggregate_options")}
    )
    editor = MendParallel(model, tokenizer, hparams, network=network)
    for request in requests:
        editor.edit(request)
    of_sequence = EditSequence.all_of(model)[0].change
    assert of_sequence is not None
    written = _weights(model)
    editor.rollback_all()

    texts = Texts(model, tokenizer)
    batch = texts.batch([Text(r.prompt, r.target_text) for r in requests])
    own = propose(model, editor.targets, batch, network).updates
    found = solver_of(texts).solved([batch], own, [3])

    for target in editor.targets:
        base = target.layer(model).weight.detach()
        after = base.clone()
        found[target.name].detach().write(after, target.transposed)
        change = written[target.name] - base
        assert (after - written[target.name]).abs().max() <= 1e-3 * change.abs().max()


def test_the_gradient_of_a_solved_update_is_that_of_its_rows() -> None:
    torch.manual_seed(0)
    x, d, preserved = (torch.randn(n, 6, dtype=torch.float64) for n in (4, 4, 5))
    options = SystemOptions(1e-2, 10.0, 0.5, 0)
    system = GrowingSystem("toy", options, PreservedRows(5, preserved.float()))
    label = torch.tensor([False, True, False, True])

    def solved(rows: torch.Tensor) -> torch.Tensor:
        update = system.alone(x, rows, label)
        return (update.values.double().T @ update.keys.double()).sum(1)

    assert torch.autograd.gradcheck(solved, (d.requires_grad_(),), eps=1e-2, atol=1e-3, rtol=1e-3)


def test_the_network_learns_from_edits_that_are_solved_together() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    model.requires_grad_(False)
    texts, network = Texts(model, tokenizer), toy_network(model, tokenizer)
    found = together(texts, network, [3, 1])

    assert found.edit != alone(texts, network).edit
    assert all(gradient.abs().max() > 0 for gradient in gradients(network, found))


@pytest.mark.parametrize(("at_once", "scale"), [(2, 1.0), (1, 1.0), (1, 1024.0)])
def test_the_gradient_of_a_step_is_the_same_in_parts(at_once: int, scale: float) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    model.requires_grad_(False)
    texts, network = Texts(model, tokenizer), toy_network(model, tokenizer)
    whole = together(texts, network, [3, 1])
    in_parts = together(texts, network, [3, 1], at_once, scale=scale)

    assert torch.allclose(whole.loss, in_parts.loss, rtol=1e-5)
    one, other = gradients(network, whole), gradients(network, in_parts)
    for expected, found in zip(one, other, strict=True):
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@dataclass(eq=False)
class Kept:
    """A tensor that a graph keeps."""

    tensor: torch.Tensor


def test_no_graph_of_a_part_outlives_the_part() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    model.requires_grad_(False)
    texts, network = Texts(model, tokenizer), toy_network(model, tokenizer)
    held, at_starts = 0, []

    def pack(tensor: torch.Tensor) -> Kept:
        nonlocal held
        kept = Kept(tensor)
        held += tensor.numel()
        weakref.finalize(kept, freed, tensor.numel())
        return kept

    def freed(elements: int) -> None:
        nonlocal held
        held -= elements

    def starts(_model: Any, _inputs: Any) -> None:
        if torch.is_grad_enabled():
            at_starts.append(held)

    hook = model.register_forward_pre_hook(starts)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        together(texts, network, [4], at_once=1)
    hook.remove()
    of_texts = at_starts[-4:]

    assert of_texts[0] > 0  # those of the network and of the systems
    assert set(of_texts) == {of_texts[0]}


def test_a_group_may_span_the_parts_of_a_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, **SOLVED | {"batch_size": 1, "accumulate_bs": 8, "solved_edits": 8})
    sizes = []
    solved = StepSolver.solved

    def seen(self: StepSolver, batches: Any, own: Any, groups: list[int]) -> Any:
        sizes.append((len(batches), max(groups)))
        return solved(self, batches, own, groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepSolver, "solved", seen)
        run.run()
    assert {batches for batches, _ in sizes} == {8}
    assert max(largest for _, largest in sizes) > 1


def test_a_solved_edit_asks_for_no_change_after_its_answer() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    texts, network = Texts(model, tokenizer), toy_network(model, tokenizer)
    request = Text(facts()[0].request.prompt, facts()[0].request.target_text)
    targets = find_targets(model, toy_targets(model))
    moved = []
    for weight in (0.0, 100.0):
        solver = solver_of(texts, {request: replace(request, continuation=(5, 6, 7))}, weight)
        batch = texts.batch([solver.continued[request]])
        own = propose(model, targets, batch, network).updates
        update = solver.solved([batch], own, [1])[targets[0].name]
        seen = layer_rows(model, targets[:1], batch, after=True)[targets[0].name]
        change = update.added(seen.x).norm(dim=1)
        assert int(seen.after.sum()) == 4  # the answer's last token, and its continuation
        moved.append(float(change[seen.after].mean() / change[~seen.after].mean()))
        assert update.values.requires_grad
    assert moved[1] < 0.5 * moved[0]


def test_a_run_with_what_follows_an_answer_draws_it_for_every_request(tmp_path: Path) -> None:
    options = {"aggregate_options": {"preserved_text_weight": 0.1, "continuation_weight": 10}}
    run = trainer(tmp_path, **SOLVED | options)
    run.run()
    asked = {(e.request.prompt, e.request.target_text) for e in run.data.train}
    assert {(text.prompt, text.target) for text in run.continued} == asked
    assert run.solver is not None
    assert run.solver.continued is run.continued


def test_a_run_through_the_solve_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", **SOLVED, model_save_pt=2)
    whole.run()
    first = trainer(tmp_path / "parts", **SOLVED, model_save_pt=2)
    step = first._step

    def until_killed(*arguments: Any) -> Any:
        if first.progress.step == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    first._step = until_killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(tmp_path / "parts", **SOLVED, model_save_pt=2, resume=True)
    second.run()
    plain = trainer(tmp_path / "plain")
    plain.run()

    one, other, without = state(whole), state(second), state(plain)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], without[name]) for name in one)


def test_the_archive_of_a_run_edits_as_its_edits_were_solved(tmp_path: Path) -> None:
    options = {"preserved_text_weight": 0.25, "solve_single": True}
    run = trainer(tmp_path, **SOLVED | {"aggregate_options": options}, max_iters=1)
    run.run()
    archive = tmp_path / "archive.safetensors"
    kept = load_archive(archive).header["aggregate"]
    assert kept["preserved_text"] is None  # the text that ships, which is not copied

    model = toy_model("llama")
    hparams = toy_hparams(toy_targets(model), aggregate=None, aggregate_options=None)
    hparams.archive = str(archive)
    editor = MendParallel(model, toy_tokenizer(), hparams)
    assert editor.aggregate.solve_single
    assert editor.aggregate.preserved_text_weight == 0.25
    plain = trainer(tmp_path / "plain", max_iters=1)
    plain.run()
    assert "aggregate" not in load_archive(tmp_path / "plain" / "archive.safetensors").header


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"solved_edits": 0}, "solved_edits is 0"),
        ({"solved_edits": 4, "aggregate": "sum"}, "leave out `aggregate`"),
    ],
)
def test_what_cannot_be_solved_together_is_refused(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(HparamsError, match=named):
        trainer(tmp_path, **options).run()


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {
        target.name: target.layer(model).weight.detach().clone()
        for target in find_targets(model, toy_targets(model))
    }
