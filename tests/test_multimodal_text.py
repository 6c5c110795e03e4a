"""The text part of models that also take images is edited like any decoder: Qwen2-VL, LLaVA and
Gemma 3, in tiny configurations, with prompts of text alone and with an image in the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from toys import (
    REQUEST,
    REQUESTS,
    VOCABULARY,
    assert_unchanged,
    downhill_network,
    toy_hparams,
    toy_network,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel, RequestError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.ready_batch import ready_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import find_targets

TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
SEEING: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
IMAGE_TOKEN = len(VOCABULARY) - 1


def qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
        image_token_id=IMAGE_TOKEN,
        video_token_id=IMAGE_TOKEN - 1,
        vision_start_token_id=IMAGE_TOKEN - 2,
        vision_end_token_id=IMAGE_TOKEN - 3,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**SEEING, projection_dim=16),
        image_token_id=IMAGE_TOKEN,
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3() -> Any:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8),
        vision_config=transformers.SiglipVisionConfig(**SEEING),
        mm_tokens_per_image=4,
        image_token_id=IMAGE_TOKEN,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # transformers makes it zero, and then images say nothing
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()
    return model


@pytest.fixture(params=[qwen2_vl, llava, gemma3], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> Any:
    make: Callable[[], Any] = request.param
    torch.manual_seed(0)
    return make().eval()


def targets_of(model: Any) -> list[str]:
    return [
        name
        for name, _ in model.named_parameters()
        if "language_model" in name and ".layers.3.mlp." in name
    ]


def test_captured_rows_of_the_text_part_give_the_true_gradient(model: Any) -> None:
    batch = make_batch(model, toy_tokenizer(), as_requests(REQUESTS))
    rows, _ = capture(model, find_targets(model, targets_of(model)), batch)

    batch.losses_on(model).sum().backward()

    for name in targets_of(model):
        made = rows[name].delta.T @ rows[name].x
        torch.testing.assert_close(made, model.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


def test_the_text_part_is_edited_alone_and_in_batches_and_restored(model: Any) -> None:
    tokenizer, names = toy_tokenizer(), targets_of(model)
    network = toy_network(model, tokenizer, names)
    editor = MendParallel(model, tokenizer, toy_hparams(names), network=network)
    before = weights(model)

    for requests in (REQUESTS[:1], REQUESTS):
        result = editor.edit(requests)
        changed = {
            name for name, bits in before.items() if not bits.equal(model.get_parameter(name))
        }
        assert changed == set(names)
        result.rollback()
        assert_unchanged(model, before)


# An image in the prompt


def ready(model: Any, seed: int = 1) -> dict[str, Any]:
    """What the model's processor would make of the prompt of REQUEST after an image."""
    generator = torch.Generator().manual_seed(seed)
    words = toy_tokenizer()(REQUEST["prompt"])["input_ids"]
    ids = [IMAGE_TOKEN - 2, *[IMAGE_TOKEN] * 4, IMAGE_TOKEN - 3, *words]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    kinds = (inputs["input_ids"] == IMAGE_TOKEN).long()
    if model.config.model_type == "qwen2_vl":
        inputs["pixel_values"] = torch.randn(16, 3 * 2 * 14 * 14, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        inputs["mm_token_type_ids"] = kinds
    else:
        inputs["pixel_values"] = torch.randn(1, 3, 8, 8, generator=generator)
        if model.config.model_type == "gemma3":
            inputs["token_type_ids"] = kinds
    return inputs


def test_rows_of_a_prompt_with_an_image_give_the_true_gradient(model: Any) -> None:
    (request,) = as_requests(REQUEST)
    inputs = ready(model)
    batch = ready_batch(model, toy_tokenizer(), request, inputs)
    rows, losses = capture(model, find_targets(model, targets_of(model)), batch)

    target = torch.tensor([toy_tokenizer()(REQUEST["target_new"])["input_ids"]])
    told = {**inputs, "input_ids": torch.cat([inputs["input_ids"], target], 1)}
    for name in {"attention_mask", "token_type_ids", "mm_token_type_ids"} & inputs.keys():
        more = torch.full_like(target, int(name == "attention_mask"))
        told[name] = torch.cat([inputs[name], more], 1)
    labels = told["input_ids"].clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    loss = model(**told, labels=labels).loss
    loss.backward()

    torch.testing.assert_close(losses[0], loss.detach(), rtol=1e-4, atol=1e-5)
    for name in targets_of(model):
        made = rows[name].delta.T @ rows[name].x
        torch.testing.assert_close(made, model.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


def test_an_edit_of_a_prompt_with_an_image_holds_for_it_and_is_restored(model: Any) -> None:
    names = targets_of(model)
    network = downhill_network(model, toy_tokenizer(), names)
    editor = MendParallel(
        model, toy_tokenizer(), toy_hparams(names, sequence="add"), network=network
    )
    before = weights(model)

    seen = editor.edit(REQUEST, inputs=ready(model), losses_after=True)
    assert seen.losses_after is not None
    assert float(seen.losses_after[0]) < float(seen.losses[0])
    values = {name: update.values for name, update in seen.updates.items()}
    seen.rollback()
    assert_unchanged(model, before)

    other = editor.edit(REQUEST, inputs=ready(model, seed=2))
    assert any(not update.values.equal(values[name]) for name, update in other.updates.items())
    other.rollback()
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("requests", "inputs", "message"),
    [
        (REQUEST, {"input_ids": torch.ones(2, 3, dtype=torch.long)}, "tokens of one prompt"),
        (REQUEST, {}, "tokens of one prompt"),
        (REQUEST, {"input_ids": torch.ones(1, 3), "position_ids": 1}, "position_ids out"),
        (REQUESTS, {"input_ids": torch.ones(1, 3)}, "belong to one request"),
        (
            REQUEST,
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.zeros(1, 3)},
            "no padding",
        ),
        (
            REQUEST,
            {"input_ids": torch.ones(1, 3).long(), "special": torch.zeros(1, 3)},
            "'special' has an entry for each token",
        ),
    ],
)
def test_inputs_that_cannot_be_a_prompt_are_refused(
    requests: Any, inputs: dict[str, Any], message: str
) -> None:
    model = llava().eval()
    names = targets_of(model)
    network = downhill_network(model, toy_tokenizer(), names)
    editor = MendParallel(
        model, toy_tokenizer(), toy_hparams(names, sequence="add"), network=network
    )
    before = weights(model)

    with pytest.raises(RequestError, match=message):
        editor.edit(requests, inputs=inputs)

    assert_unchanged(model, before)
