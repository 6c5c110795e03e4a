"""Toy mixtures of experts that the tests share: four blocks of width 16, of several families of
transformers, and the same models with every expert's weights in layers of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from toys import VOCABULARY, WIDTH, toy_hparams

BLOCKS, EXPERTS = 4, 4
COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
OF_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"intermediate_size": 24, "num_local_experts": EXPERTS}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 12,
            "num_experts": EXPERTS,
            "head_dim": 8,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": ("Olmoe", {"intermediate_size": 24, "num_experts": EXPERTS}),
    "granitemoe": ("GraniteMoe", {"intermediate_size": 24, "num_local_experts": EXPERTS}),
    # Experts in × out, with biases, of gates between the rows of which others lie.
    "gpt_oss": (
        "GptOss",
        {
            "intermediate_size": WIDTH,
            "num_local_experts": EXPERTS,
            "head_dim": 8,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    # A dense block first, and an expert for all tokens in each other block.
    "deepseek_v3": (
        "DeepseekV3",
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 12,
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}
MIXTURES = tuple(OF_FAMILY)


def toy_mixture(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A mixture of `family` with random weights, in eval mode; the same for the same arguments.

    It has the implementation of experts that transformers chooses."""
    name, options = OF_FAMILY[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **options})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1.5 / WIDTH**0.5)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    stacked = any(".experts." in name for name, _ in model.named_parameters())
    if not stacked and Version(transformers.__version__) < Version("5.23"):
        pytest.skip(f"this transformers builds the experts of {family} otherwise")
    return model.to(dtype).eval()


def stacks(model: Any, last: int = 2) -> list[str]:
    """The names of the stacks of experts in the last `last` blocks."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and int(name.split(".")[2]) >= BLOCKS - last
    ]


def mixture_hparams(names: list[str], **options: Any) -> Any:
    """Hyperparameters for the weights `names` of a mixture, without an archive."""
    return toy_hparams(names, **{"untrained": True, "max_relative_norm": 10.0, **options})


class OneExpert(nn.Module):
    """One expert of a `Mixtral`, its weights in layers of their own."""

    def __init__(self, gate_up: Tensor, down: Tensor, act: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = _linear(gate_up)
        self.down_proj = _linear(down)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


class ListedExperts(nn.ModuleList):
    """The experts of a stack as a list of modules, as transformers had them before version 5."""

    def __init__(self, stacked: Any) -> None:
        pairs = zip(stacked.gate_up_proj, stacked.down_proj, strict=True)
        super().__init__(OneExpert(gate_up, down, stacked.act_fn) for gate_up, down in pairs)


class ListedMixture(nn.Module):
    """The block of a `Mixtral`, with its experts as a list: what transformers 4 did."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.gate = block.gate
        self.experts = ListedExperts(block.experts)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        flat = states.view(-1, width)
        _, weights, chosen = self.gate(flat)
        out = torch.zeros_like(flat)
        mask = nn.functional.one_hot(chosen, num_classes=len(self.experts)).permute(2, 1, 0)
        for number in mask.sum(dim=(-1, -2)).nonzero().flatten().tolist():
            place, token = torch.where(mask[number])
            seen = flat[None, token].reshape(-1, width)
            out.index_add_(0, token, self.experts[number](seen) * weights[token, place, None])
        return out.reshape(batch, length, width)


def listed(model: Any) -> Any:
    """`model`, a `Mixtral`, with its experts as lists of modules from now on."""
    for block in model.model.layers:
        block.mlp = ListedMixture(block.mlp)
    return model.eval()


def listed_name(name: str) -> str:
    """The name that an expert's weight of a stack has in `listed` models."""
    stack, _, number = name.removesuffix("]").rpartition("[")
    experts, _, which = stack.rpartition(".")
    return f"{experts}.{number}.{which}.weight"


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer
