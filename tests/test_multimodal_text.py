"""The text part of models that also take images is edited like any decoder: Qwen2-VL, LLaVA and
Gemma 3, in tiny configurations and with prompts of text alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from toys import (
    REQUESTS,
    VOCABULARY,
    assert_unchanged,
    toy_hparams,
    toy_network,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
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
    return transformers.Gemma3ForConditionalGeneration(config)


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
