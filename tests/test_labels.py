"""`special_tokens_in_labels`: whether labels have the special tokens that a tokenizer puts into a
target, as EasyEdit's do; archives say which way they were made, and a mismatch is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import (
    REQUEST,
    REQUESTS,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
)

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelTrainingHparams,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.evaluation.data import Example, LocalityText
from easyedit_mend_parallel.forward.batch import IGNORED, Batch, make_batch, without_special_tokens
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.forward.texts import Text
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.trainer import Trainer
from easyedit_mend_parallel.weights.target import find_targets

BOS = 1


def batches(
    family: str = "llama", requests: Any = REQUEST, **tokenizer: Any
) -> tuple[Any, Batch, Batch]:
    """A model, and the batch of the requests with special tokens in its labels and without."""
    model = toy_model(family)
    tok = toy_tokenizer(**tokenizer)
    asked = as_requests(requests)
    return (
        model,
        make_batch(model, tok, asked),
        make_batch(model, tok, asked, special_tokens_in_labels=False),
    )


def test_without_special_tokens_bos_is_no_label_and_everything_else_stays() -> None:
    _, with_bos, without = batches(bos=True)

    # <s> the capital of France is Rome and Oslo: `France` should predict <s> in EasyEdit.
    assert with_bos.labels[0, 4] == BOS
    assert without.labels[0, 4] == IGNORED
    assert torch.equal(with_bos.labels[0, 5:], without.labels[0, 5:])
    assert torch.equal(with_bos.inputs["input_ids"], without.inputs["input_ids"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_a_tokenizer_that_adds_nothing_are_the_same_both_ways(side: str) -> None:
    _, one, other = batches(requests=REQUESTS, side=side)
    assert torch.equal(one.labels, other.labels)


def test_leaving_bos_out_leaves_its_gradient_out_of_the_edit() -> None:
    model, with_bos, without = batches(bos=True)
    targets = find_targets(model, toy_targets(model))
    name = targets[-1].name  # down_proj of the last block: no attention lies above it

    one, losses = capture(model, targets, with_bos)
    other, fewer = capture(model, targets, without)

    # The last token before the target's place carries the gradient of <s>, and only of it.
    assert one[name].live.tolist() == [False] * 4 + [True] * 4 + [False]
    assert other[name].live.tolist() == [False] * 5 + [True] * 3 + [False]
    torch.testing.assert_close(other[name].delta[5:8], one[name].delta[5:8] * 4 / 3)
    log_likelihoods = model(**with_bos.inputs).logits[0].log_softmax(-1)
    torch.testing.assert_close(4 * losses[0] - 3 * fewer[0], -log_likelihoods[4, BOS])


def test_an_encoder_decoder_reads_the_same_target_and_is_not_taught_to_end_it() -> None:
    _, with_eos, without = batches("t5", REQUESTS, eos=True)

    assert torch.equal(with_eos.inputs["decoder_input_ids"], without.inputs["decoder_input_ids"])
    assert (with_eos.labels == 2).sum() == len(REQUESTS)
    assert (without.labels == 2).sum() == 0
    assert (with_eos.labels != IGNORED).sum() - (without.labels != IGNORED).sum() == len(REQUESTS)


def test_a_model_that_writes_padding_over_labels_does_not_teach_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As FSMT's and ProphetNet's `prepare_decoder_input_ids_from_labels` do."""
    model, tok = toy_model("t5"), toy_tokenizer(eos=True)
    asked = as_requests(REQUESTS)
    plain = make_batch(model, tok, asked)
    make = model.prepare_decoder_input_ids_from_labels

    def writing(labels: torch.Tensor) -> torch.Tensor:
        made = make(labels=labels)
        labels.masked_fill_(labels == IGNORED, 3)
        return made

    monkeypatch.setattr(model, "prepare_decoder_input_ids_from_labels", writing)
    batch = make_batch(model, tok, asked)
    assert (plain.labels == IGNORED).any()
    assert torch.equal(batch.labels, plain.labels)
    assert torch.equal(batch.inputs["decoder_input_ids"], plain.inputs["decoder_input_ids"])


def test_labels_that_somebody_else_made_are_masked_alike() -> None:
    labels = torch.tensor([[BOS, 9, 10, IGNORED], [IGNORED, BOS, 9, 2]])
    assert without_special_tokens(labels, [0, 1, 2, 3]).tolist() == [
        [IGNORED, 9, 10, IGNORED],
        [IGNORED, IGNORED, 9, IGNORED],
    ]
    assert labels[0, 0] == BOS


def test_the_hyperparameter_decides_how_an_edit_is_labelled() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=True)
    names = toy_targets(model)
    network = toy_network(model, tokenizer)
    losses = []
    for way in (True, False):
        hparams = toy_hparams(names, special_tokens_in_labels=way)
        result = MendParallel(model, tokenizer, hparams, network=network).edit(REQUEST)
        losses += result.losses
        result.rollback()

    _, with_bos, without = batches(bos=True)
    expected = [with_bos.losses_on(model).item(), without.losses_on(model).item()]
    assert losses == pytest.approx(expected)
    assert losses[0] != pytest.approx(losses[1])


@pytest.mark.parametrize("name", ["archive.safetensors", "archive.pt"])
@pytest.mark.parametrize("way", [True, False])
def test_an_archive_says_how_its_labels_were_made(name: str, way: bool, tmp_path: Path) -> None:
    model = toy_model("llama")
    network = toy_network(model, toy_tokenizer())
    path = save_archive(tmp_path / name, network, special_tokens_in_labels=way)
    assert load_archive(path).special_tokens_in_labels is way


@pytest.mark.parametrize("way", [True, False])
def test_the_trainer_makes_labels_the_way_its_archive_says(way: bool, tmp_path: Path) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=True)
    hparams = MENDParallelTrainingHparams(
        **vars(toy_hparams(toy_targets(model), special_tokens_in_labels=way, edit_lr=-1e-2))
        | {"batch_size": 1, "accumulate_bs": 1, "max_iters": 1}
    )
    examples = [
        Example(
            one,
            rephrases=(f"some people say that {one.prompt}",),
            neighbours=(LocalityText("water boils at"),),
            unrelated=(LocalityText("a cat sat on the mat"),),
        )
        for one in as_requests(REQUESTS)
    ]
    trainer = Trainer(model, tokenizer, hparams, Data(examples, []), tmp_path, quiet=True)

    labels = trainer.texts.batch([Text("who wrote Hamlet", " Paris")]).labels
    assert (labels == BOS).any() == way
    assert load_archive(trainer.run()).special_tokens_in_labels is way


def test_an_archive_that_does_not_say_was_made_easyedits_way(tmp_path: Path) -> None:
    network = toy_network(toy_model("llama"), toy_tokenizer())
    path = tmp_path / "easyedits"
    torch.save({"model": network.state_dict(), "opt": None}, path)
    assert load_archive(path).special_tokens_in_labels is True


@pytest.mark.parametrize("way", [True, False])
def test_a_mismatch_is_said_with_both_and_what_to_write(
    way: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=True)
    network = toy_network(model, tokenizer)
    path = save_archive(tmp_path / "mine.safetensors", network, special_tokens_in_labels=way)

    def said(hparams_say: bool) -> list[str]:
        caplog.clear()
        options = {"archive": str(path), "special_tokens_in_labels": hparams_say}
        with caplog.at_level(logging.WARNING):
            MendParallel(model, tokenizer, toy_hparams(toy_targets(model), **options))
        return caplog.messages

    assert said(way) == []
    (message,) = said(not way)
    assert f"was made with special_tokens_in_labels: {str(way).lower()}" in message
    assert f"hyperparameters say {str(not way).lower()}" in message
    assert f"Write `special_tokens_in_labels: {str(way).lower()}`" in message
