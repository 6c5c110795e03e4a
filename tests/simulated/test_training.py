"""Training through an edit on a model that is spread over simulated accelerators: the gradient of
the hypernetwork equals the gradient on one device on every cut, an edit acts only while it is
attached, and edits add.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from placements import PLACEMENTS, device_map
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from toys import (
    REQUESTS,
    assert_unchanged,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, TrainingError
from easyedit_mend_parallel.forward.batch import Batch, make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

CUTS = [f"llama-cut-at-{block}" for block in range(1, 7)]
"""At 4 and 5 the targets lie on two devices, at 3 the first one opens a device (EasyEdit's MEND
stops on all three), at 6 the head alone is elsewhere, below 3 all targets share the second."""
MORE = ["llama-three-devices", "llama-head-back", "llama-zigzag", "gpt2-cut-at-4"]
TWO_DEVICES = "llama-cut-at-5"
BOUND = 1e-3
"""Of the largest entry of each gradient."""


class Toy:
    """A toy model with a network in training mode, on one device or spread."""

    def __init__(
        self,
        placement: str,
        spread: bool,
        network_device: str | None = None,
        also: tuple[str, ...] = (),
    ) -> None:
        family, blocks, head = PLACEMENTS[placement]
        self.model = toy_model(family)
        self.model.requires_grad_(False)
        self.tokenizer = tokenizer_for(self.model)
        names = [*toy_targets(self.model), *also]
        network = toy_network(self.model, self.tokenizer, names).train()
        if spread:
            places = device_map(self.model, blocks, head)
            places |= dict.fromkeys((name.removesuffix(".weight") for name in also), "sim:2")
            self.model = dispatch_model(self.model, places, main_device="sim:0")
            network.to(network_device or self.model.get_parameter(names[-1]).device)
        self.network: Hypernetwork = network
        self.targets = {target.name: target for target in network.targets}

    def batch(self, *requests: Any) -> Batch:
        return make_batch(self.model, self.tokenizer, as_requests(list(requests)))

    def propose(self, *requests: Any) -> dict[str, LowRankUpdate]:
        batch = self.batch(*requests)
        return propose(self.model, list(self.targets.values()), batch, self.network).updates

    def logits(self, batch: Batch, *edits: Mapping[str, LowRankUpdate]) -> Tensor:
        if not edits:
            return batch.logits(self.model)
        first, *others = edits
        with attached(self.model, self.targets, first):
            return self.logits(batch, *others)

    def outer_gradient(self) -> dict[str, Tensor]:
        """Of MEND's training loss: the edit is learnt, and what has nothing to do with it kept."""
        edit, elsewhere = self.batch(REQUESTS[0]), self.batch(*REQUESTS[1:])
        with torch.no_grad():
            before = self.logits(elsewhere).log_softmax(-1)
        updates = self.propose(REQUESTS[0])
        learnt = edit.losses(self.logits(edit, updates)).sum()
        after = self.logits(elsewhere, updates).log_softmax(-1)
        kept = F.kl_div(after, before, log_target=True, reduction="batchmean")
        loss = 0.1 * learnt + kept.to(learnt.device)
        parameters = dict(self.network.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return {name: gradient.cpu() for name, gradient in zip(parameters, gradients, strict=True)}


def assert_close(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, gradient in expected.items():
        largest = gradient.abs().max()
        assert largest > 0, name
        assert (ours[name] - gradient).abs().max() <= BOUND * largest, name


@pytest.mark.parametrize("placement", CUTS + MORE)
def test_the_outer_gradient_on_any_cut_equals_the_one_on_one_device(placement: str) -> None:
    assert_close(
        Toy(placement, spread=True).outer_gradient(), Toy(placement, spread=False).outer_gradient()
    )


def test_the_outer_gradient_where_a_targets_input_arrives_from_another_device() -> None:
    """accelerate moves the head's input inside the forward that it wraps; a hook sees it before."""
    head = ("lm_head.weight",)
    assert_close(
        Toy(TWO_DEVICES, spread=True, also=head).outer_gradient(),
        Toy(TWO_DEVICES, spread=False, also=head).outer_gradient(),
    )


def test_the_outer_gradient_is_that_of_weights_to_which_the_update_was_added() -> None:
    """Against torch's own functional call of the whole model with the edited weights."""
    toy = Toy(TWO_DEVICES, spread=True)
    plain = Toy(TWO_DEVICES, spread=False)

    def of_edited_weights(batch: Batch, updates: Mapping[str, LowRankUpdate]) -> Tensor:
        edited = {
            name: plain.model.get_parameter(name) + update.values.T @ update.keys
            for name, update in updates.items()
        }
        logits: Tensor = functional_call(plain.model, edited, (), batch.inputs).logits
        return logits

    with_update = toy.outer_gradient()
    plain.logits = lambda batch, *edits: (  # type: ignore[method-assign]
        of_edited_weights(batch, edits[0]) if edits else batch.logits(plain.model)
    )
    assert_close(with_update, plain.outer_gradient())


@pytest.mark.parametrize("device", ["cpu", "sim:0", "sim:3"])
def test_the_outer_gradient_does_not_depend_on_where_the_network_lives(device: str) -> None:
    assert_close(
        Toy(TWO_DEVICES, spread=True, network_device=device).outer_gradient(),
        Toy(TWO_DEVICES, spread=False).outer_gradient(),
    )


@pytest.mark.parametrize("placement", CUTS)
def test_statistics_observed_on_any_cut_equal_those_on_one_device(placement: str) -> None:
    found = []
    for spread in (True, False):
        toy = Toy(placement, spread)
        rows, _ = capture(toy.model, list(toy.targets.values()), toy.batch(*REQUESTS))
        toy.network.observe(rows)
        found.append({name: buffer.cpu() for name, buffer in toy.network.named_buffers()})
    spread_out, one_device = found
    for name, buffer in one_device.items():
        torch.testing.assert_close(spread_out[name], buffer, rtol=1e-4, atol=1e-7, msg=name)


def test_edited_and_unedited_calls_take_turns_and_do_not_touch_each_other() -> None:
    toy = Toy(TWO_DEVICES, spread=True)
    before, hooks = weights(toy.model), hook_count(toy.model)
    batch = toy.batch(*REQUESTS)
    with torch.no_grad():
        one, other = toy.propose(REQUESTS[0]), toy.propose(REQUESTS[1])
        calls: list[tuple[Mapping[str, LowRankUpdate], ...]] = [(), (one,), (other,)]
        first = [toy.logits(batch, *edits) for edits in calls]
        again = [toy.logits(batch, *edits) for edits in (*reversed(calls), *calls)]

    for expected, found in zip([*reversed(first), *first], again, strict=True):
        assert torch.equal(expected, found)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[1], first[2])
    assert hook_count(toy.model) == hooks
    assert_unchanged(toy.model, before)


def test_a_gradient_may_be_taken_after_other_calls_of_the_model() -> None:
    """The graph of an edited call holds what it needs; hooks that are gone do not matter to it."""
    toy = Toy(TWO_DEVICES, spread=True)
    batch = toy.batch(REQUESTS[0])
    parameters = list(toy.network.parameters())

    def gradient(between: bool) -> list[Tensor]:
        loss = batch.losses(toy.logits(batch, toy.propose(REQUESTS[0]))).sum()
        if between:
            toy.logits(batch)
            toy.logits(batch, toy.propose(REQUESTS[1]))
        return list(torch.autograd.grad(loss, parameters))

    for one, other in zip(gradient(False), gradient(True), strict=True):
        assert torch.equal(one, other)


def test_an_edit_of_an_edit_equals_an_edit_of_the_written_model() -> None:
    """Attached updates add, and the second edit's rows are those of the edited model."""
    toy = Toy(TWO_DEVICES, spread=True)
    batch = toy.batch(*REQUESTS)
    with torch.no_grad():
        first = toy.propose(REQUESTS[0])
        with attached(toy.model, toy.targets, first):
            second = toy.propose(REQUESTS[1])
        alone = toy.propose(REQUESTS[1])
        with_update = toy.logits(batch, first, second)
    written = MendParallel(
        toy.model,
        toy.tokenizer,
        toy_hparams(list(toy.targets)),
        network=copy.deepcopy(toy.network).eval(),
    )
    with torch.no_grad():
        written.edit(REQUESTS[0])
        expected = toy.propose(REQUESTS[1])
        written.edit(REQUESTS[1])
        torch.testing.assert_close(with_update, batch.logits(toy.model), rtol=1e-3, atol=1e-4)

    for name, update in expected.items():
        change = dense(update, toy.targets[name])
        torch.testing.assert_close(
            dense(second[name], toy.targets[name]),
            change,
            rtol=0,
            atol=float(1e-3 * change.abs().max()),
        )
        difference = (dense(alone[name], toy.targets[name]) - change).abs().max()
        assert difference > 0.01 * change.abs().max()  # the first edit is not without effect on it


def test_a_gradient_on_two_devices_is_seen_and_a_dead_one_refused() -> None:
    toy = Toy(TWO_DEVICES, spread=True)
    batch = toy.batch(REQUESTS[0])
    watch = GradientWatch(interval=1)
    updates = toy.propose(REQUESTS[0])
    watch.follow(updates)
    batch.losses(toy.logits(batch, updates)).sum().backward()
    watch.refuse_dead()

    updates = toy.propose(REQUESTS[0])
    watch.follow(updates)
    (0 * batch.losses(toy.logits(batch, updates)).sum()).backward()
    with pytest.raises(TrainingError, match="was zero"):
        watch.refuse_dead()


def dense(update: LowRankUpdate, target: Target) -> Tensor:
    assert update.keys.shape[1] == target.in_features
    return (update.values.T @ update.keys).cpu()


def hook_count(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())
