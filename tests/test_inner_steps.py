"""Claims about edits of several steps: each is made on the model as those before would leave it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import (
    REQUEST,
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.weights.update import LowRankUpdate


def edit(model: Any, requests: Any, **options: Any) -> Any:
    """The edit by the network of the model as it was before any (`toy_network` looks at it)."""
    tokenizer = tokenizer_for(model)
    network = toy_network(toy_model(model.config.model_type), tokenizer)
    hparams = toy_hparams(toy_targets(model), **options)
    return MendParallel(model, tokenizer, hparams, network=network).edit(requests)


def matrix(update: LowRankUpdate, request: int = 0) -> torch.Tensor:
    mine = update.request == request
    return update.values[mine].T @ update.keys[mine]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_two_steps_are_one_edit_after_the_other(family: str) -> None:
    model = toy_model(family)
    together = edit(model, REQUEST, inner_steps=2)
    together.rollback()
    first = edit(model, REQUEST)
    # The second is made while the weights have the first in them.
    second = edit(model, REQUEST)

    for name, update in together.updates.items():
        expected = matrix(first.updates[name]) + matrix(second.updates[name])
        assert (matrix(update) - expected).norm() <= 1e-3 * expected.norm()
        assert (matrix(second.updates[name]) - matrix(first.updates[name])).norm() > 0


def test_one_step_is_mend_to_the_bit_and_several_are_one_transaction() -> None:
    model = toy_model("llama")
    before = weights(model)
    plain = edit(model, REQUEST)
    plain.rollback()
    one = edit(model, REQUEST, inner_steps=1)
    one.rollback()
    three = edit(model, REQUEST, inner_steps=3)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    three.rollback()

    assert_unchanged(model, before)
    for name, update in plain.updates.items():
        assert torch.equal(update.values, one.updates[name].values)
        assert len(three.updates[name].keys) == 3 * len(update.keys)


def test_a_request_takes_its_steps_alone_in_a_batch() -> None:
    model = toy_model("llama")
    batch = edit(model, REQUESTS, inner_steps=2)
    batch.rollback()
    for number, request in enumerate(REQUESTS):
        alone = edit(model, request, inner_steps=2)
        alone.rollback()
        for name, update in batch.updates.items():
            expected = matrix(alone.updates[name])
            assert (matrix(update, number) - expected).norm() <= 1e-3 * expected.norm()


def test_what_cannot_be_made_in_steps_is_refused() -> None:
    model = toy_model("llama")
    with pytest.raises(HparamsError, match="inner_steps is 0"):
        edit(model, REQUEST, inner_steps=0)
    with pytest.raises(HparamsError, match="mean_loss"):
        edit(model, REQUEST, inner_steps=2, aggregate="mean_loss")
