"""Models that predict no next token of a text are refused with an error that says why; models that
do are edited, also where transformers does not say how their decoder is fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers as t
from toys import (
    REQUESTS,
    VOCABULARY,
    assert_unchanged,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)
from transformers.models.blenderbot.modeling_blenderbot import shift_tokens_right

from easyedit_mend_parallel import MendParallel, TargetError
from easyedit_mend_parallel.forward.predicting import decoder_inputs

V = len(VOCABULARY)
IDS: dict[str, Any] = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EYES: dict[str, Any] = SIZES | {"image_size": 8, "patch_size": 4}
BOTH: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 3,
}


def bert(**options: Any) -> Any:
    return t.BertConfig(**IDS, **SIZES, **options)


def whisper() -> Any:
    config = t.WhisperConfig(
        **IDS, **BOTH, num_mel_bins=8, suppress_tokens=None, begin_suppress_tokens=None
    )
    return t.WhisperForConditionalGeneration(config)


def blip() -> Any:
    words = IDS | SIZES | {"encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = t.BlipConfig(text_config=words, vision_config=EYES)
    return t.BlipForConditionalGeneration(config)


def captioner() -> Any:
    reader = t.GPT2Config(**IDS, n_embd=16, n_layer=2, n_head=2, add_cross_attention=True)
    of = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(t.ViTConfig(**EYES), reader)
    return t.VisionEncoderDecoderModel(of)


def pair() -> Any:
    decoder = bert(is_decoder=True, add_cross_attention=True)
    of = t.EncoderDecoderConfig.from_encoder_decoder_configs(bert(), decoder)
    return t.EncoderDecoderModel(of)


def clip() -> Any:
    words = IDS | SIZES | {"max_position_embeddings": 64}
    return t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=EYES, projection_dim=16))


def reformer() -> Any:
    config = t.ReformerConfig(
        vocab_size=V,
        is_decoder=True,
        hidden_size=16,
        feed_forward_size=24,
        num_attention_heads=2,
        attention_head_size=8,
        attn_layers=["local", "local"],
        local_attn_chunk_length=4,
        axial_pos_embds=False,
        max_position_embeddings=64,
    )
    return t.ReformerModelWithLMHead(config)


def made_without_gradients() -> Any:
    with torch.inference_mode():
        return toy_model("llama")


def prompted() -> Any:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(toy_model("llama"), config)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "speech": (whisper, "reads input_features and no text"),
    "a captioner": (captioner, "reads pixel_values and no text"),
    "a model that needs an image": (blip, r"cannot be called with a text alone.*pixel_values"),
    "a classifier": (
        lambda: t.BertForSequenceClassification(bert()),
        r"logits of the shape \(1, 2\).*language-model head",
    ),
    "a decoder that classifies": (
        lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**IDS, **SIZES)),
        r"logits of the shape \(1, 2\)",
    ),
    "an encoder-decoder that classifies": (
        lambda: t.T5ForSequenceClassification(t.T5Config(**IDS, **T5)),
        "has no output layer for tokens",
    ),
    "a head for each token": (
        lambda: t.BertForTokenClassification(bert()),
        "has 2 logits for each token",
    ),
    "a head for choices": (
        lambda: t.BertForMultipleChoice(bert()),
        "has no output layer for tokens",
    ),
    "questions": (
        lambda: t.BertForQuestionAnswering(bert()),
        "gives no logits, but start_logits, end_logits",
    ),
    "a model without a head": (
        lambda: t.LlamaModel(t.LlamaConfig(**IDS, **SIZES)),
        "gives no logits, but last_hidden_state",
    ),
    "half a model": (
        lambda: t.T5EncoderModel(t.T5Config(**IDS, **T5)),
        "gives no logits, but last_hidden_state",
    ),
    "two models without a start": (pair, "decoder_start_token_id"),
    "a model of pairs": (clip, "has no input embeddings"),
    "layers without gradients": (reformer, "no gradient reaches"),
    "weights without gradients": (made_without_gradients, "inference_mode"),
    "a wrapper": (
        lambda: torch.nn.DataParallel(toy_model("llama")),
        r"DataParallel.*model\.module",
    ),
    "tokens of its own": (prompted, "a model with tokens of its own before the text"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_predicts_no_next_token_of_a_text_is_refused_and_says_why(kind: str) -> None:
    make, message = REFUSED[kind]
    model = make().eval()
    linear = [name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear]
    inside = [name for name in linear if "lm_head" not in name and "vision" not in name]
    hparams = toy_hparams([f"{inside[-1]}.weight"], untrained=True)
    before = weights(model)

    with pytest.raises(TargetError, match=message):
        MendParallel(model, toy_tokenizer(), hparams).edit(REQUESTS[0])
    assert_unchanged(model, before)


def test_a_model_whose_vocabulary_lacks_a_label_is_refused() -> None:
    model = toy_model("llama")
    model.lm_head = torch.nn.Linear(16, 8, bias=False)
    hparams = toy_hparams(toy_targets(model), untrained=True)

    with pytest.raises(TargetError, match=r"has 8 logits for each token.*tokenizer"):
        MendParallel(model, toy_tokenizer(), hparams).edit(REQUESTS[0])


@pytest.mark.parametrize("family", ["Blenderbot", "NllbMoe"])
def test_a_decoder_that_transformers_does_not_feed_reads_its_labels_after_a_start(
    family: str,
) -> None:
    config = getattr(t, f"{family}Config")(**IDS, **BOTH, max_position_embeddings=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(t, f"{family}ForConditionalGeneration")(config).eval()
    names = [
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and name.endswith("decoder.layers.1.self_attn.out_proj")
    ]
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert torch.equal(decoder_inputs(model, labels), shift_tokens_right(labels, 3, 2))

    before = weights(model)
    tokenizer = toy_tokenizer(eos=True)
    network = toy_network(model, tokenizer, names)
    result = MendParallel(model, tokenizer, toy_hparams(names), network=network).edit(REQUESTS)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(model).items())
    result.rollback()
    assert_unchanged(model, before)


def test_labels_are_shifted_as_transformers_shifts_them() -> None:
    model = toy_model("t5")
    labels = torch.tensor([[5, 6, 2], [8, 2, -100]])
    expected = model.prepare_decoder_input_ids_from_labels(labels=labels)

    class Other:
        config, generation_config = model.config, model.generation_config

    assert torch.equal(decoder_inputs(Other(), labels), expected)
