"""Claims about this package's trainer, in one process: what it moves, keeps and refuses."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from toys import assert_unchanged, toy_model, toy_tokenizer, weights
from trained.runs import SUBJECTS, UNRELATED, data, facts, furthest, state, trainer

from easyedit_mend_parallel.errors import DataError, HparamsError, TrainingError
from easyedit_mend_parallel.evaluation.data import LocalityText
from easyedit_mend_parallel.evaluation.measures import Score, evaluate
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.texts import Texts
from easyedit_mend_parallel.method.archive import load_archive
from easyedit_mend_parallel.method.hypernetwork import STATISTICS
from easyedit_mend_parallel.training import checkpoint as checkpoints
from easyedit_mend_parallel.training.curves import draw_curves
from easyedit_mend_parallel.training.sampling import Sampler


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_run_moves_every_tensor_of_the_network_and_none_of_the_model(
    family: str, tmp_path: Path
) -> None:
    model = toy_model(family)
    before = weights(model)
    run = trainer(tmp_path, model=model)
    begun = state(run)

    archive = load_archive(run.run())

    assert_unchanged(model, before)
    ended = state(run)
    assert all(torch.isfinite(tensor).all() for tensor in ended.values())
    assert all(not torch.equal(ended[name], begun[name]) for name in ended)
    assert set(archive.state) == set(ended)
    assert [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"] == [1, 2, 3, 4]


def test_the_losses_are_those_of_the_whole_model_when_states_are_kept(tmp_path: Path) -> None:
    kept = trainer(tmp_path / "kept")
    kept.run()
    whole = trainer(tmp_path / "whole", trunk_memory=0)
    whole.run()

    assert kept.texts.trunk is not None
    assert whole.texts.trunk is None
    for one, other in zip(metrics(tmp_path / "kept"), metrics(tmp_path / "whole"), strict=True):
        numbers = {name: value for name, value in other.items() if name != "kind"}
        assert {name: one[name] for name in numbers} == pytest.approx(numbers, rel=2e-3, abs=1e-4)


def test_the_statistics_are_those_of_the_first_examples(tmp_path: Path) -> None:
    few, many = (
        trainer(tmp_path / str(n), statistics_examples=n, max_iters=1, final_eval=False)
        for n in (4, 16)
    )
    few.run()
    many.run()

    counts = [state(run)[next(n for n in state(run) if n.endswith(".k"))] for run in (few, many)]
    assert 0 < counts[0] < counts[1]


def test_a_killed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    options = {"opt": "Adam", "lr": 1e-3, "lr_schedule": "linear", "max_iters": 6}
    unbroken = trainer(tmp_path / "unbroken", **options)
    unbroken.run()

    killed = trainer(tmp_path / "killed", **options)
    step = killed._step

    def until_killed(*arguments: Any) -> Any:
        if killed.progress.step == 5:  # after the checkpoint of step 4
            raise KeyboardInterrupt
        return step(*arguments)

    killed._step = until_killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = trainer(tmp_path / "killed", resume=True, **options)
    resumed.run()

    assert furthest(state(resumed), state(unbroken)) == 0.0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "unbroken")


def test_a_run_is_not_begun_over_another_and_not_gone_on_with_other_options(tmp_path: Path) -> None:
    trainer(tmp_path).run()

    with pytest.raises(TrainingError, match="already has a run"):
        trainer(tmp_path).run()
    with pytest.raises(TrainingError, match="other hyperparameters or data"):
        trainer(tmp_path, resume=True, cedit=0.5).run()
    with pytest.raises(TrainingError, match="is no checkpoint to resume from"):
        trainer(tmp_path / "nothing", resume=True).run()


def test_the_best_archive_is_kept_and_a_run_without_a_better_one_stops(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, max_iters=40, val_interval=1, early_stop_patience=3, early_stop_key="score"
    )
    values = iter([3.0, 2.0, 5.0, 5.0, 5.0, 5.0, 1.0])
    run._value = lambda _: next(values)  # type: ignore[method-assign]

    run.run()

    assert (run.progress.best_step, run.progress.step) == (2, 5)
    assert load_archive(tmp_path / "archive.safetensors").header["step"] == 2


def test_a_network_to_start_from_keeps_its_statistics_and_counts_on(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", final_eval=True)
    archive = first.run()

    second = trainer(tmp_path / "second", archive=str(archive), max_iters=1, lr=0.0, lr_lr=0.0)
    second.run()

    begun, ended = load_archive(archive).state, state(second)
    for name in ended:
        if name.endswith(".k"):
            assert ended[name] == 2 * begun[name]
        elif name.rpartition(".")[2] not in STATISTICS:
            assert torch.equal(ended[name], begun[name])


def test_accumulated_parts_are_one_batch(tmp_path: Path) -> None:
    options = {"max_iters": 1, "final_eval": False, "lr": 1e-3, "lr_lr": 1e-5}
    whole = trainer(tmp_path / "whole", batch_size=4, **options)
    whole.run()
    parts = trainer(tmp_path / "parts", batch_size=2, accumulate_bs=2, **options)
    parts.run()

    assert furthest(state(parts), state(whole)) < 1e-4


def test_gradients_are_clipped_to_grad_clip(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_iters=1, lr=1.0, lr_lr=1.0, grad_clip=1e-3, final_eval=False)
    begun = state(run)
    run.run()

    ended = state(run)
    moved = [ended[n] - begun[n] for n, _ in run.network.named_parameters()]
    length = torch.cat([one.flatten() for one in moved]).norm()
    torch.testing.assert_close(length, torch.tensor(1e-3), rtol=1e-2, atol=0)


def test_mixed_precision_trains(tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    run = trainer(tmp_path, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    begun = state(run)
    try:
        run.run()
    finally:
        AcceleratorState._reset_state()

    assert furthest(state(run), begun) > 0
    assert all(tensor.dtype == torch.float32 for tensor in state(run).values())


def test_steps_that_are_no_number_are_left_out_and_too_many_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, max_iters=30, nan_limit=3, model_save_pt=1)
    step = run._step

    def spoilt(*arguments: Any) -> Any:
        figures, norm = step(*arguments)
        bad = run.progress.step in (1, 2, 5, 6, 7)
        return figures, norm * float("nan") if bad else norm

    run._step = spoilt  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match="3 steps in a row"):
        run.run()

    assert "step 1 is left out" in caplog.text
    assert run.progress.step == 7
    assert (tmp_path / "last.safetensors").exists()
    assert all(torch.isfinite(tensor).all() for tensor in state(run).values())


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, model_save_pt=1, max_iters=3)
    write, written = checkpoints.write_tensors, []

    def full_at_last(*arguments: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        write(*arguments)
        written.append(1)

    monkeypatch.setattr(checkpoints, "write_tensors", full_at_last)
    with pytest.raises(TrainingError, match=r"cannot be written .*; the one before is whole"):
        run.run()
    monkeypatch.undo()

    trainer(tmp_path, model_save_pt=1, max_iters=3, resume=True).run()


def test_texts_that_are_too_long_are_left_out_counted_and_never_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = facts()
    long = replace(examples[0], rephrases=("the " * 30 + "capital is",))
    with caplog.at_level(logging.WARNING):
        run = trainer(tmp_path, of=data(train=[long, *examples[1:]]), max_length=20)

    assert len(run.data.train) == len(examples) - 1
    assert "1 of 16 training examples are left out" in caplog.text
    assert "max_length: 20" in caplog.text
    with pytest.raises(DataError, match="all 16 training examples have a text of more than"):
        trainer(tmp_path, max_length=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"opt": "Adm"}, HparamsError, "opt is 'Adm'"),
        ({"lr_schedule": "sideways"}, HparamsError, "lr_schedule is 'sideways'"),
        ({"lr_schedule": "reduce_lr_on_plateau"}, HparamsError, "depend only on the step"),
        ({"max_iters": None}, HparamsError, "max_iters"),
        ({"locality_examples": 0}, HparamsError, "locality_examples is 0; it has to be 1 or more"),
        ({"early_stop_key": "acc"}, HparamsError, "early_stop_key is 'acc'"),
        ({"batch_size": 32}, DataError, "16 examples to train on and a step takes 32"),
    ],
)
def test_what_cannot_be_run_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        trainer(tmp_path, **options).run()


def test_a_key_of_another_trainer_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match="early_stop_key is 'edit/acc_val'"):
        trainer(tmp_path, early_stop_key="edit/acc_val")
    trainer(tmp_path, early_stop_key="edit/acc_val", of=data(validation=()))


def test_an_example_without_a_text_that_shall_stay_is_refused() -> None:
    lonely = [replace(facts()[0], relation=None)]
    with pytest.raises(DataError, match="has no text that must not change"):
        Sampler(lonely, [], per_step=1, neighbour_share=0.5, seed=0)


def test_a_draw_follows_from_seed_step_and_place_alone() -> None:
    one, other = (
        Sampler(facts(), UNRELATED, per_step=4, neighbour_share=0.5, seed=seed) for seed in (1, 2)
    )
    again = Sampler(facts(), UNRELATED, per_step=4, neighbour_share=0.5, seed=1)
    assert [one.step(n) for n in range(9)] == [again.step(n) for n in reversed(range(9))][::-1]
    assert [one.step(n) for n in range(9)] != [other.step(n) for n in range(9)]
    epoch = [drawn.example for n in range(4) for drawn in one.step(n)]
    assert sorted(e.request.prompt for e in epoch) == sorted(e.request.prompt for e in facts())


def test_neighbours_are_of_the_same_relation_and_another_subject() -> None:
    sampling = Sampler(facts(), UNRELATED, per_step=16, neighbour_share=1.0, seed=0)
    for drawn in sampling.step(0):
        of = {"capital": ("capital", "stands by"), "river": ("river", "runs")}
        text = drawn.locality[0].prompt
        assert any(word in text for word in of[drawn.example.relation or ""])
        assert str(drawn.example.subject) not in text.split()
        assert any(subject in text.split() for subject in SUBJECTS)
    own = Sampler(
        facts(neighbours=(LocalityText("who wrote"),)), (), per_step=16, neighbour_share=0.0, seed=0
    )
    assert {text.prompt for drawn in own.step(0) for text in drawn.locality} == {"who wrote"}


def test_an_edit_is_tried_on_as_many_texts_that_shall_stay_as_asked_for() -> None:
    sampling = Sampler(
        facts(), UNRELATED, per_step=16, neighbour_share=0.5, locality_examples=6, seed=0
    )
    for drawn in sampling.step(0):
        assert len(drawn.locality) == 6
        assert len({text.prompt for text in drawn.locality}) > 1


def test_a_bos_among_the_labels_is_no_part_of_what_is_measured(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    tokenizer = toy_tokenizer(bos=True)
    example = replace(facts()[0], rephrases=())

    (scores,) = evaluate(
        Texts(run.model, tokenizer), run.targets, lambda _: {}, [example], UNRELATED
    )

    without, with_bos = (
        make_batch(run.model, tokenizer, [example.request], special_tokens_in_labels=kept)
        .losses_on(run.model)
        .item()
        for kept in (False, True)
    )
    assert scores.edit_loss == pytest.approx(without, rel=1e-4)
    assert abs(scores.edit_loss - with_bos) > 1e-2


def test_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    assert draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([1.0] * 10, 0.7225, 1.0), ([0.0, 1.0] * 5, 0.2366, 0.7634), ([0.5, 0.7, 0.6], 0.487, 0.713)],
)
def test_scores_have_their_intervals(values: list[float], low: float, high: float) -> None:
    score = Score.of(values)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-3)
