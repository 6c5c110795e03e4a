"""The models that benchmarks edit: shapes of well-known ones with random weights, and what is asked
of them. Knows nothing of who edits them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from easyedit_mend_parallel.hparams import MENDParallelHyperParams
from easyedit_mend_parallel.method.archive import save_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.weights.target import find_targets

WORDS = [f"w{number}" for number in range(200)]
TARGET_BLOCKS = 3
"""The targets are the MLPs of so many blocks, the last ones: EasyEdit's choice."""
RATE = 1e-6
"""So small that two hundred edits leave random weights what they were."""


@dataclass(frozen=True)
class Shape:
    """A Llama model's shape and the rank of the networks that edit it."""

    name: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    rank: int
    tied: bool = False
    chosen: tuple[str, ...] = ()

    @property
    def targets(self) -> list[str]:
        """The weights to edit: those `chosen`, or the MLPs of the last blocks."""
        if self.chosen:
            return list(self.chosen)
        blocks = range(self.layers - TARGET_BLOCKS, self.layers)
        return [f"model.layers.{n}.mlp.{part}_proj.weight" for n in blocks for part in PROJECTIONS]

    @property
    def target_bytes(self) -> int:
        """Bytes of all targets in fp32: what a backup of them takes."""
        return 4 * len(self.targets) * self.width * self.ffn

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=1,
        )

    def model(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
        """The model with random weights, in eval mode; the same each time."""
        with torch.device("meta"):
            model = LlamaForCausalLM(self.config()).to(dtype)
        model = model.to_empty(device=device)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.fill_(1)
                else:
                    parameter.normal_(0, 0.02, generator=generator)
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
        return model.eval()

    def hparams(self, **options: Any) -> MENDParallelHyperParams:
        """Every field that editing needs, for this package and, read by name, for EasyEdit."""
        return MENDParallelHyperParams(
            **{
                "model_name": "llama-shape",
                "model_class": "LlamaForCausalLM",  # EasyEdit knows decoders by their names
                "tokenizer_class": "AutoTokenizer",
                "tokenizer_name": "llama-shape",
                "inner_params": self.targets,
                **asdict(HypernetworkConfig(rank=self.rank, edit_lr=RATE)),
                "archive": None,
                "device": "cpu",
                "on_worse": "ignore",  # a random network's edits go anywhere
                **options,
            }
        )

    def network(self, model: nn.Module) -> Hypernetwork:
        """Networks as trained ones are: no factor is zero, and they have statistics."""
        hparams = self.hparams()
        network = Hypernetwork(find_targets(model, self.targets), hparams.network_config())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if name.endswith((".u", ".v")):
                    tensor.normal_(0, 0.01, generator=generator)
                elif tensor.isnan().any():
                    tensor.fill_(1)
        return network.eval().requires_grad_(False)

    def archive(self, model: nn.Module, folder: Path) -> Path:
        """The networks as an archive that EasyEdit reads too."""
        path = folder / f"{self.name}.pt"
        save_archive(path, self.network(model), model_config=model.config.to_dict())
        return path


PROJECTIONS = ("gate", "up", "down")
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 4, 64, 128, 2, 2, 300, rank=16),
        Shape("smollm2-135m", 30, 576, 1536, 9, 3, 49152, rank=1920, tied=True),
        Shape("llama-1b", 16, 2048, 5632, 32, 32, 32000, rank=1920),
        Shape("llama-2-7b", 32, 4096, 11008, 32, 32, 32000, rank=1920),
        Shape("llama-2-13b", 40, 5120, 13824, 40, 40, 32000, rank=1920),
    )
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of two hundred words, one token each."""
    words = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    made.padding_side = "left"
    return made


def requests(count: int) -> list[dict[str, str]]:
    """Requests of ten tokens, the last two of which are the target. No prompt is there twice."""
    return [
        {
            "prompt": " ".join(
                WORDS[(7 * number + n * (1 + number // len(WORDS))) % len(WORDS)] for n in range(8)
            ),
            "target_new": " ".join(WORDS[(11 * number + n + 90) % len(WORDS)] for n in range(2)),
            "subject": WORDS[7 * number % len(WORDS)],
        }
        for number in range(count)
    ]


def twin(model: nn.Module) -> Any:
    """A second model with the same weights, not a copy of them: hooks of one do not run in the
    other, and what one writes in place the other sees."""
    weights = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, weights)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
