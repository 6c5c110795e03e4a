"""Models inside a wrapper (PEFT's or another) are edited as the model alone, or refused."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from toys import (
    REQUESTS,
    assert_unchanged,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel, RequestError, UpdateError
from easyedit_mend_parallel.forward.calling import takes

PREFIX = "base_model.model."


def adapted(
    model: Any, modules: Any = ("c_attn",), *, task: str | None = None, **options: Any
) -> Any:
    """`model` in PEFT's wrapper, with a LoRA that adds nothing (unless the options say so)."""
    config = peft.LoraConfig(
        target_modules=list(modules), fan_in_fan_out=True, task_type=task, **options
    )
    return peft.get_peft_model(model, config).eval()


class Bare(nn.Module):
    """A wrapper whose forward hands on two arguments and no more."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def network_named(plain: Any, tokenizer: Any, prefix: str) -> Any:
    """The toy network of `plain`, for the same targets under a wrapper's names."""
    network = toy_network(plain, tokenizer)
    wrapped = adapted(plain) if prefix == PREFIX else Bare(plain)
    other = toy_network(wrapped, tokenizer, [prefix + name for name in toy_targets(plain)])
    other.load_state_dict(network.state_dict())
    return other


def updates_of(model: Any, tokenizer: Any, network: Any, prefix: str = "") -> list[Any]:
    names = [prefix + name for name in toy_targets(toy_model("gpt2"))]
    editor = MendParallel(model, tokenizer, toy_hparams(names), network=network)
    return list(editor.edit(REQUESTS).updates.values())


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_adapter_that_adds_nothing_changes_no_update(side: str, task: str | None) -> None:
    tokenizer = toy_tokenizer(side=side)
    alone = updates_of(toy_model("gpt2"), tokenizer, toy_network(toy_model("gpt2"), tokenizer))

    network = network_named(toy_model("gpt2"), tokenizer, PREFIX)
    wrapped = updates_of(adapted(toy_model("gpt2"), task=task), tokenizer, network, PREFIX)

    for one, other in zip(alone, wrapped, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


def test_a_wrapper_that_keeps_positions_from_its_model_edits_batches_padded_right_only() -> None:
    network = network_named(toy_model("gpt2"), toy_tokenizer(), "inner.")
    right = updates_of(Bare(toy_model("gpt2")), toy_tokenizer(), network, "inner.")
    assert right
    model = Bare(toy_model("gpt2"))
    before = weights(model)

    with pytest.raises(RequestError, match=r"position_ids.*padding_side"):
        updates_of(model, toy_tokenizer(side="left"), network, "inner.")
    assert_unchanged(model, before)


def test_what_a_wrapped_model_takes_is_asked_of_the_model() -> None:
    model = toy_model("gpt2")

    assert takes(adapted(model), "position_ids")
    assert takes(torch.compile(model), "position_ids")
    assert not takes(adapted(model), "no_such_argument")
    assert not takes(adapted(toy_model("t5"), ("q",)), "position_ids")
    assert not takes(Bare(model), "position_ids")


LAYER = "transformer.h.5.mlp.c_fc"


def merging(apply: str = "weight", sequence: str = "add") -> tuple[Any, MendParallel]:
    """GPT-2 with a LoRA that adds something on the one target, and its editor."""
    torch.manual_seed(0)
    model = adapted(toy_model("gpt2"), [LAYER], init_lora_weights=False)
    name = f"{PREFIX}{LAYER}.base_layer.weight"
    network = toy_network(model, toy_tokenizer(), [name])
    hparams = toy_hparams([name], apply=apply, sequence=sequence)
    return model, MendParallel(model, toy_tokenizer(), hparams, network=network)


@pytest.mark.parametrize("undo", ["the edit", "the first of two", "all"])
def test_an_adapter_that_was_merged_before_an_edit_and_not_at_its_undo_is_named(undo: str) -> None:
    model, editor = merging()
    base = weights(model)
    model.merge_adapter()
    merged = weights(model)
    result = editor.edit(REQUESTS[0])
    second = editor.edit(REQUESTS[1]) if undo == "the first of two" else None
    model.unmerge_adapter()
    unmerged = weights(model)

    with pytest.raises(UpdateError, match=rf"{LAYER}.*no adapter is merged.*'default' is"):
        editor.rollback_all() if undo == "all" else result.rollback()
    assert_unchanged(model, unmerged)

    model.merge_adapter()
    editor.rollback_all() if undo == "all" else result.rollback()
    if second is not None:
        second.rollback()
    if undo == "all":
        assert_unchanged(model, merged)
    model.unmerge_adapter()
    for name, weight in base.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].data, weight)


@pytest.mark.parametrize("sequence", ["add", "solve"])
def test_an_adapter_that_was_merged_after_an_edit_is_named_at_its_undo(sequence: str) -> None:
    model, editor = merging(sequence=sequence)
    before = weights(model)
    result = editor.edit(REQUESTS[0])
    model.merge_adapter()
    merged = weights(model)

    with pytest.raises(UpdateError, match=r"'default' is merged.*unmerge_adapter"):
        result.rollback()
    assert_unchanged(model, merged)
    with pytest.raises(UpdateError, match=r"'default' is merged.*unmerge_adapter"):
        editor.rollback_all()
    assert_unchanged(model, merged)

    model.unmerge_adapter()
    result.rollback()
    assert_unchanged(model, before)


def test_outputs_are_undone_whatever_adapter_is_merged() -> None:
    model, editor = merging("output")
    before = weights(model)
    result = editor.edit(REQUESTS[0])
    model.merge_adapter()
    result.rollback()
    model.unmerge_adapter()

    for name, weight in before.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].data, weight)


def test_a_target_that_went_with_its_adapter_is_named_at_its_undo() -> None:
    model, editor = merging()
    result = editor.edit(REQUESTS[0])
    model.merge_and_unload()

    with pytest.raises(UpdateError, match="is no longer in the model"):
        result.rollback()
    with pytest.raises(UpdateError, match="is no longer in the model"):
        editor.rollback_all()
