"""Makes a Llama of a given shape on disk, with random weights, a tokenizer and an archive.

Only for measurements: its output is noise. Never has more than one block in memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from easyedit_mend_parallel.method.archive import save_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.weights.target import find_targets

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
    "small": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 8, "heads": 4},
}
RANKS = {"7b": 1920, "small": 16}
ARCHIVE = "archive.safetensors"
VOCABULARY = 32000
INDEX = "model.safetensors.index.json"


def targets_of(shape: str) -> list[str]:
    """The MLP weights of the last three blocks, as in EasyEdit's files for Llama."""
    blocks = int(SHAPES[shape]["num_hidden_layers"])
    return [
        f"model.layers.{block}.mlp.{name}_proj.weight"
        for block in range(blocks - 3, blocks)
        for name in ("gate", "up", "down")
    ]


def make(shape: str, folder: Path) -> Path:
    """The model's directory in `folder`: checkpoint, tokenizer and archive, whole or not at all.

    Its name contains "gpt", for which EasyEdit selects the Auto class and GPT-2's tokenizer. An
    existing directory is used as it is.
    """
    final = folder / f"gpt2-tokenized-llama-{shape}-shape"
    if final.is_dir():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as scratch:
        made = Path(scratch, "model")
        made.mkdir()
        config = _config(shape)
        config.save_pretrained(made)
        _write_weights(config, made)
        _write_tokenizer(made)
        _write_archive(shape, config, made / ARCHIVE)
        made.rename(final)
    return final


def _config(shape: str) -> LlamaConfig:
    sizes = dict(SHAPES[shape])
    heads = sizes.pop("heads")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        **sizes,
    )


def _write_weights(config: LlamaConfig, folder: Path) -> None:
    """Write one safetensors file for each block, one for the rest, and their index."""
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    random = torch.Generator().manual_seed(0)
    files: dict[str, list[str]] = {}
    for name in shapes:
        block = name.split(".")[2] if name.startswith("model.layers.") else "ends"
        files.setdefault(f"model-{block}.safetensors", []).append(name)
    for file, names in track(files.items(), "random weights, block by block"):
        tensors = {name: _random(shapes[name], random) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _random(shape: Iterable[int], random: torch.Generator) -> Tensor:
    sizes = tuple(shape)
    if len(sizes) == 1:
        return torch.ones(sizes, dtype=torch.bfloat16)
    return torch.empty(sizes, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)


def _write_tokenizer(folder: Path) -> None:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: number for number, byte in enumerate(alphabet)} | {"</s>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    written["tokenizer_class"] = "GPT2Tokenizer"
    settings.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _write_archive(shape: str, config: LlamaConfig, path: Path) -> None:
    """An untrained network with invented statistics; it costs what a trained one costs."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    names = targets_of(shape)
    network = Hypernetwork(find_targets(model, names), HypernetworkConfig(rank=RANKS[shape]))
    for name, statistic in network.named_buffers():
        statistic.fill_(1.0 if name.endswith("_std") else 100.0 if name.endswith("k") else 0.0)
    save_archive(path, network)
