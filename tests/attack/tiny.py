"""Makes a tiny model of every family that transformers knows, from the names of the fields of its
configuration. Knows no family, and nothing of edits.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from toys import VOCABULARY
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

WIDTH = 32
FIELDS: tuple[tuple[str, Any], ...] = (
    (r"vocab_size(_per_layer_input)?|embedding_size_vocab|src_vocab_size|tgt_vocab_size", "words"),
    (
        r"(num_)?max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|seq_length",
        128,
    ),
    (r"max_(source|target|encoder|decoder)_positions|.*_max_position_embeddings", 128),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|qk_nope_head_dim|qk_rope_head_dim|v_head_dim", 8),
    (r"qk_head_dim", 16),
    (r".*head_dim|d_kv|attention_head_size|kv_channels|.*head_size", 8),
    (r"(num_|n_)(kv|key_value)_heads|num_key_value_heads|multi_query_group_num", 2),
    (r"num_global_key_value_heads", 2),
    (r".*(attention_)?heads|n_head|num_head|mamba_n_heads|linear_num_.*_heads", 4),
    (r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|num_blocks|depth", 4),
    (r"layers_block_type|layer_types|attn_layers|attention_layers", None),
    (r"first_k_dense_replace|num_nextn_predict_layers|.*_mtp.*", 1),
    (r"(num|n|moe_num)(_local|_routed)?_experts|num_experts|n_expert", 4),
    (r"num_experts_per_tok|num_selected_experts|top_k|moe_top_?k|moe_k|num_experts_per_token", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"n_shared_experts|num_shared_experts", 1),
    (r".*(intermediate|ffn|inner|feed_forward).*(size|dim|width)|d_ff|n_inner|ffn_hidden_size", 48),
    (r"(moe|expert).*_dim|.*_ffn_dim|dim_ff", 48),
    (
        r"hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|n_embed|embedding_dim|embedding_size",
        WIDTH,
    ),
    (
        r"(attention|decoder|encoder|entity|text|word_embed|lru|linear|projection).*_(size|dim)",
        WIDTH,
    ),
    (r"hidden_size_per_layer_input", 8),
    (r"(mamba_|ssm_)?(d_)?state(_size)?|mamba_d_state|.*_state_size|.*_d_state|time_step_rank", 8),
    (r"rotary_dim|rope_dim|index_head_dim|.*_rank", 8),
    (r"index_topk", 64),
    (r"(attention_)?(sliding_)?window(_size)?|sliding_window.*|.*chunk_size|attention_window", 16),
    (r"block_size|num_random_blocks|.*block_length", 4),
    (r"image_size|patch_size|num_channels", 8),
    (r"mamba_n_groups|n_groups", 1),
)
"""(what a field's name is, its value): the first that fits counts, and only where the default is a
larger number."""
ATTEMPTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": 8},
    {"head_dim": 8, "num_key_value_heads": 4},
    {"num_heads": 8, "num_attention_heads": 4},
    {"head_dim": 8, "num_key_value_heads": 2, "num_experts": 4, "hidden_size_per_layer_input": 0},
    {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    {"layer_types": ["full_attention"] * 4, "num_kv_shared_layers": 0},
    {"layer_types": ["full_attention"] * 4, "num_key_value_heads": 4},
    {"axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attn_chunk_length": 4},
    {"attention_types": [[["global", "local"], 2]]},
    {"index_n_heads": 4, "index_head_dim": 8, "index_topk": 16, "head_dim": 8},
    {"moe_intermediate_size": 48, "num_dense_layers": 1},
    {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    {"num_key_value_heads": 4, "num_experts_per_tok": 2, "head_dim": 8},
    {"attn_layer_indices": [1, 3], "num_key_value_heads": 2},
)
"""Fields whose defaults fit to no small number, one set after another until a class can be made."""
LARGEST = 2e7
KEPT = re.compile(r"(pad|bos|eos|sep|cls|mask|.*)_token_id|.*_index")
IDS = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def families() -> dict[str, tuple[str, str]]:
    """{model type: (class, kind)} of every causal and encoder-decoder family in transformers."""
    found = {name: (kind, "causal") for name, kind in _named(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    for name, kind in _named(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
        if name in found and found[name][0] != kind:
            found[f"{name} (encoder-decoder)"] = (kind, "encoder-decoder")
        else:
            found[name] = (kind, "encoder-decoder")
    return found


def _named(mapping: Any) -> list[tuple[str, str]]:
    return [(name, kind if isinstance(kind, str) else kind[0]) for name, kind in mapping.items()]


def tiny_config(config_class: type, attempt: dict[str, Any], *, decoder: bool) -> Any:
    """A configuration of `config_class` with small numbers. `attempt` has values of some fields."""
    parts = {
        name: tiny_values(part, attempt)
        for name, part in (getattr(config_class, "sub_configs", None) or {}).items()
        if inspect.isclass(part) and part.__name__ != "AutoConfig"
    }
    values = tiny_values(config_class, attempt)
    if decoder and "is_decoder" in inspect.signature(config_class.__init__).parameters:
        values["is_decoder"] = True
    return config_class(**(values | parts))


def tiny_values(config_class: type, attempt: dict[str, Any]) -> dict[str, Any]:
    """{field of `config_class`: a small number}, with those of `attempt` that it has."""
    found: dict[str, Any] = {}
    for name, field in inspect.signature(config_class.__init__).parameters.items():
        default = field.default
        if name in attempt:
            found[name] = attempt[name]
            continue
        if name in IDS and name != "decoder_start_token_id":
            found[name] = IDS[name]
            continue
        if KEPT.fullmatch(name):
            if isinstance(default, int) and default >= len(VOCABULARY):
                found[name] = 2
            continue
        if isinstance(default, bool) or not isinstance(default, int):
            continue
        for pattern, value in FIELDS:
            if re.fullmatch(pattern, name):
                small = len(VOCABULARY) if value == "words" else value
                if small is not None and (default > small or value == "words"):
                    found[name] = small
                break
    return found


def tiny_model(family: str) -> Any:
    """A model of `family` (a key of `families()`) in eval mode, in fp32, the same every time.

    Raises whatever its class raises where no such numbers fit together.
    """
    kind, way = families()[family]
    model_class = getattr(transformers, kind)
    error: Exception | None = None
    made: Any = None
    for attempt in ATTEMPTS:
        try:
            config = _config_for(family, model_class, way, attempt)
            with torch.device("meta"):
                size = sum(one.numel() for one in model_class(config).parameters())
            if size > LARGEST:
                raise ValueError(f"{size} parameters: some sizes were not found by name")
            model = _made(model_class, _config_for(family, model_class, way, attempt))
            made = made or model
            call_plainly(model)
        except Exception as found:  # families raise anything
            error = error or found
        else:
            return model
    if made is not None:
        return made  # one whose forward fails, or needs more than a text
    assert error is not None
    raise error


def call_plainly(model: Any) -> None:
    """Call `model` with a text, and its positions if it takes them. Raises what its forward raises,
    and ValueError where its logits are not finite."""
    ids = torch.arange(4, 17)[None]
    read = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        read["position_ids"] = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), **read)
    logits = getattr(found, "logits", None)
    if logits is not None and not bool(torch.isfinite(logits).all()):
        raise ValueError("its logits are not finite")


def _config_for(family: str, model_class: Any, way: str, attempt: dict[str, Any]) -> Any:
    config_class = CONFIG_MAPPING[family.split(" ")[0]]
    config = tiny_config(config_class, attempt, decoder=way == "causal")
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        inner = [one for one in vars(config).values() if isinstance(one, wanted)]
        config = inner[0] if inner else tiny_config(wanted, attempt, decoder=way == "causal")
    for name, value in IDS.items():
        with contextlib.suppress(Exception):
            if name != "decoder_start_token_id" or way == "encoder-decoder":
                setattr(config, name, value)
    config._attn_implementation = "eager"
    return config


def _made(model_class: Any, config: Any) -> Any:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model_class(config)
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, Conv1D)):
                fan = layer.in_features if isinstance(layer, nn.Linear) else layer.nx
                nn.init.normal_(layer.weight, std=1.2 / fan**0.5)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight)
        model = model.float()
        for parameter in model.parameters():
            if not bool(torch.isfinite(parameter).all()) or parameter.abs().max() > 1e4:
                parameter.normal_(std=0.2)  # some families leave memory as it was
    return model.eval()
