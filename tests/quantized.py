"""Toy models wide enough for bitsandbytes, which packs rows of 32 and blocks of 64, and quantized
by `from_pretrained` as a user would. Knows nothing of what is claimed about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from toys import VOCABULARY

KINDS: dict[str, dict[str, Any]] = {
    "8-bit": {"load_in_8bit": True},
    "4-bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "4-bit-nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
}


def wide_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A Llama of four blocks, 64 wide with 128 inside, and random weights."""
    config = transformers.LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


def quantized_model(
    kind: str, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    """`wide_model`, saved in `folder` and loaded as `kind` (one of `KINDS`) on `device`."""
    wide_model(dtype).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.BitsAndBytesConfig(**KINDS[kind]),
        device_map={"": device},
        dtype=dtype,
    )
