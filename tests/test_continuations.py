"""Claims about what follows an answer: how continuations are drawn and kept, and what a training
step says of them. On toy models; nothing is claimed of how well it is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy_model, toy_network, toy_targets, toy_tokenizer
from trained.runs import facts, state, trainer

from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.evaluation.data import LocalityText
from easyedit_mend_parallel.forward.batch import IGNORED
from easyedit_mend_parallel.forward.texts import Text, Texts, continuation_positions
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.continuations import TOKENS, Continuations
from easyedit_mend_parallel.training.objective import Measured, Measuring, measure_step
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.weights.target import find_targets

HELD = (LocalityText("the sun rises in the"),)
TEXTS = [Text("the capital of France is", " Rome and Oslo"), Text("my cat", " sat")]


def drawn(texts: Texts, greedy: bool = True, **options: Any) -> dict[Text, Text]:
    continuations = Continuations(texts, seed=1, **options)
    list(continuations.draw(dict.fromkeys(TEXTS, greedy)))
    return continuations.of


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_token_of_a_continuation_is_a_label(side: str) -> None:
    texts = Texts(toy_model("llama"), toy_tokenizer(side=side))
    plain = texts.batch(TEXTS[:1])
    batch = texts.batch([Text("my cat", " sat", (7, 8)), Text(*_fields(TEXTS[0]), (9, 9))])

    assert (batch.labels[1] != IGNORED).sum() == (plain.labels != IGNORED).sum() == 3
    assert (batch.labels[0] != IGNORED).sum() == 1
    # my cat sat 7 8: `sat` predicts 7 and is the first position after the answer.
    first = 5 if side == "left" else 0
    assert continuation_positions(batch, 0) == [first + 2, first + 3, first + 4]


def test_a_greedy_continuation_is_what_the_model_says_next_until_it_ends() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    found = drawn(Texts(model, tokenizer))

    for text, continued in found.items():
        ids = list(tokenizer(text.prompt + text.target)["input_ids"])
        expected: list[int] = []
        while len(expected) < TOKENS:
            token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token == model.config.eos_token_id:
                break
            expected.append(token)
        assert list(continued.continuation) == expected


def test_a_continuation_is_shortened_to_max_length() -> None:
    found = drawn(Texts(toy_model("llama"), toy_tokenizer(), max_length=9))
    assert len(found[TEXTS[0]].continuation) <= 1


def test_continuations_are_kept_for_the_next_run_of_the_same_model(tmp_path: Path) -> None:
    texts = Texts(toy_model("llama"), toy_tokenizer())
    first = drawn(texts, greedy=False, folder=tmp_path)
    file = tmp_path / "continuations.json"
    kept = json.loads(file.read_text())
    key = next(iter(kept["continuations"]))
    kept["continuations"][key] = [5]
    file.write_text(json.dumps(kept))

    again = drawn(texts, greedy=False, folder=tmp_path)
    other = drawn(Texts(toy_model("llama", seed=3), toy_tokenizer()), folder=tmp_path)

    assert sum(again[text] != first[text] for text in TEXTS) == 1  # the one that was changed
    assert all(continued.continuation != (5,) for continued in other.values())
    file.write_text("{")
    with pytest.raises(TrainingError, match="no file of continuations"):
        drawn(texts, folder=tmp_path)


def test_models_and_tokenizers_that_end_their_answers_themselves_are_refused() -> None:
    with pytest.raises(HparamsError, match="encoder-decoder"):
        drawn(Texts(toy_model("t5"), toy_tokenizer(eos=True)))
    with pytest.raises(HparamsError, match="nothing follows"):
        drawn(Texts(toy_model("llama"), toy_tokenizer(eos=True)))


def measured(texts: Texts, network: Hypernetwork, positions: int, prompts: int = 2) -> Measured:
    samples = [
        Sample(e, (e.request.prompt, *e.rephrases)[:prompts], HELD, e.request.prompt)
        for e in facts()[:3]
    ]
    asked = {
        Text(prompt, sample.example.request.target_text): True
        for sample in samples
        for prompt in sample.prompts
    }
    continuations = Continuations(texts, seed=1)
    list(continuations.draw(asked))
    return measure_step(
        texts,
        find_targets(texts.model, toy_targets(texts.model)),
        network,
        samples,
        Measuring(1.0, 1.0, 2, positions, continuations.of if positions else {}),
    )


def test_an_edit_that_changes_nothing_changes_nothing_after_the_answer() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    network = toy_network(model, tokenizer)
    moved = measured(Texts(model, tokenizer), network, 4)
    with torch.no_grad():
        network.edit_lrs.zero_()
    still = measured(Texts(model, tokenizer), network, 4)

    assert moved.continuation > 1e-3
    assert still.continuation.abs() < 1e-6


def test_the_loss_after_the_answer_trains_the_network_and_the_others_stay_what_they_were() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    model.requires_grad_(False)
    network = toy_network(model, tokenizer)
    texts = Texts(model, tokenizer)
    on, off = measured(texts, network, 4), measured(texts, network, 0)

    assert torch.allclose(on.edit, off.edit, rtol=1e-4)
    assert off.continuation == 0
    on.continuation.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.mend.parameters())


def test_left_and_right_padding_compare_the_same_positions() -> None:
    model = toy_model("llama")
    network = toy_network(model, toy_tokenizer())
    one, other = (
        measured(Texts(model, toy_tokenizer(side=side)), network, 3) for side in ("left", "right")
    )
    assert torch.allclose(one.continuation, other.continuation, rtol=1e-3)


def test_a_run_logs_the_loss_after_the_answer_and_learns_from_it(tmp_path: Path) -> None:
    with_it = trainer(tmp_path / "on", continuation_positions=3)
    without = trainer(tmp_path / "off")
    with_it.run()
    without.run()

    def logged(name: str) -> list[float]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [line["continuation"] for line in map(json.loads, lines) if line["kind"] == "train"]

    assert all(value > 0 for value in logged("on"))
    assert not any(logged("off"))
    one, other = state(with_it), state(without)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def _fields(text: Text) -> tuple[str, str]:
    return text.prompt, text.target
