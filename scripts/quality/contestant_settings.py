"""The settings of EasyEdit's methods on SmolLM2: their files, what differs, and what to try.

docs/experiments.md says what has been tried, and on which facts. Every method starts from
EasyEdit's own file for another model; layers are taken at the same share of the depth. Knows no
model and runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCKS = 30
"""The blocks of SmolLM2-135M."""


def mapped(layer: int, of: int, blocks: int = BLOCKS) -> int:
    """The layer at the same share of the depth: `layer` of a model with `of` layers."""
    return min(blocks - 1, (2 * layer * blocks + of) // (2 * of))  # halves go up


def mapped_all(layers: Sequence[int], of: int, blocks: int = BLOCKS) -> list[int]:
    """The layers at the same shares of the depth, in order, each once."""
    return sorted({mapped(layer, of, blocks) for layer in layers})


@dataclass(frozen=True)
class Method:
    """One of EasyEdit's methods. `file` is its yaml file under EasyEdit's `hparams/`; `changed`
    replaces fields of it; each of `tried` replaces some of those, and the first of them is used.
    """

    file: str
    changed: dict[str, Any]
    tried: Sequence[dict[str, Any]] = field(default_factory=lambda: [{}])
    alone: bool = False
    """Whether the model decides for a whole batch, so that every text has to be asked by itself."""
    at_once: int = 1
    """How many facts one edit has."""

    def fields(self, choice: int = 0) -> dict[str, Any]:
        return {**self.changed, **self.tried[choice]}


def _mlp(layers: Sequence[int], *matrices: str) -> list[str]:
    return [f"model.layers.{layer}.mlp.{matrix}" for layer in layers for matrix in matrices]


# LLaMA-2-7B has 32 layers, Qwen2.5-7B and GPT-J 28, GPT-2 XL 48.
_LOCATED = {"mom2_n_samples": 0, "v_loss_layer": BLOCKS - 1}

_ULTRAEDIT = {
    "half": False,
    "inner_params": _mlp(mapped_all(range(18, 27), 28), "gate_proj", "up_proj"),
}

METHODS = {
    "MEND": Method("MEND/gpt2-xl.yaml", {"rank": 128}),
    "FT": Method(
        "FT/llama-7b.yaml",
        {"objective_optimization": "target_new", "layers": [mapped(21, 32)]},
        [
            {"lr": 5e-4},
            {"lr": 2e-4},
            {"lr": 5e-4, "norm_constraint": 5e-4},
        ],
    ),
    "LoRA": Method(
        "LoRA/llama3.2-3b.yaml",
        {"lora_type": "lora", "num_steps": 25},
        [
            {"lr": 1e-3, "target_modules": ["up_proj", "down_proj"]},
            {"lr": 1e-3},
            {"lr": 2e-4},
        ],
    ),
    "ROME": Method(
        "ROME/llama-7b.yaml",
        {
            **_LOCATED,
            "layers": [mapped(5, 32)],
            "context_template_length_params": [[5, 5]],
        },
        [
            {"mom2_adjustment": True},
            {},
        ],
    ),
    "MEMIT": Method(
        "MEMIT/llama-7b.yaml",
        {
            **_LOCATED,
            "layers": mapped_all([4, 5, 6, 7, 8], 32),
            "lm_head_module": "model.embed_tokens",  # tied, as in their file for LLaMA-3.2-3B
        },
        [
            {"mom2_update_weight": 1500},
            {},
        ],
    ),
    "AlphaEdit": Method(
        "AlphaEdit/qwen2.5-7b.yaml",
        {**_LOCATED, "layers": mapped_all([4, 5, 6, 7, 8], 32)},
        [
            {"L2": 0.1},
            {},
        ],
    ),
    "ULTRAEDIT": Method(
        "UltraEdit/qwen2.5-7b.yaml",
        {**_ULTRAEDIT, "batch_size": 1, "batch_size_once": 1},
        [
            {"lr": 1e-4},
            {"lr": 3e-5},
            {"lr": 1e-5},
            {"lr": 1e-3},
        ],
    ),
    "ULTRAEDIT, 100 at once": Method(
        "UltraEdit/qwen2.5-7b.yaml",
        {**_ULTRAEDIT, "batch_size": 100, "batch_size_once": 10},
        [
            {"lr": 1e-4},
            {"lr": 1e-5},
        ],
        at_once=100,
    ),
    "GRACE": Method(
        "GRACE/llama-7b.yaml",
        {"inner_params": [f"model.layers[{mapped(27, 32)}].mlp.down_proj.weight"]},
        [
            {"n_iter": 30},
            {"n_iter": 30, "eps": 5.0},
        ],
        alone=True,
    ),
    "WISE": Method(
        "WISE/llama-7b.yaml",
        {
            "inner_params": [f"model.layers[{mapped(27, 32)}].mlp.down_proj.weight"],
            "sequential_edit": True,
        },
        [
            {"edit_lr": 3.0, "n_iter": 30},
            {"edit_lr": 3.0, "n_iter": 10},
            {"n_iter": 10},
        ],
        alone=True,
    ),
    "MELO": Method(
        "MELO/gpt2-xl.yaml",
        {
            "grace.num_iter": 20,
            "model.fan_in_fan_out": False,
            "model.target_modules": _mlp([mapped(36, 48), mapped(37, 48) + 1], "up_proj"),
            "model.grace_layer": _mlp([mapped(35, 48)], "up_proj")[0],
        },
        [
            {"grace.edit_lr": 1e-2},
            {"grace.edit_lr": 1e-2, "grace.init_radius": 5.0},
        ],
        alone=True,
    ),
}
"""{EasyEdit's name, and what comes after a comma: the method}."""
