"""EasyEdit's yaml files for the tiny models of material.py, and what else a script is given.
Imports nothing of this package."""

from __future__ import annotations

import json
from typing import Any

import yaml

WIDTH, BLOCKS, VOCABULARY = 128, 2, 512
TARGETS = [
    f"model.layers.{block}.mlp.{name}_proj.weight"
    for block in range(BLOCKS)
    for name in ("gate", "up", "down")
]
EDIT_LR = -1e-1
"""The network is the identity, so an edit is a step down the gradient; of this length."""
MIXED_MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    **{f"model.layers.{block}": "disk" if block % 2 == 0 else "cpu" for block in range(BLOCKS)},
    "model.norm": "cpu",
    "lm_head": "cpu",
}
"""A block with targets on disk, one on the CPU."""


def editing_yaml(name: str, model: str, archive: str) -> str:
    """A file of EasyEdit's for editing, with the method's name `name`."""
    own = {"alg_name": name, "lr_scale": 1.0, "max_length": 60, "archive": archive}
    return yaml.safe_dump(_fields(model) | own)


def training_yaml(name: str, model: str, *, final_eval: bool) -> str:
    """A file of EasyEdit's for training, with the method's name `name`.

    Without a final evaluation there is none between either: the script has no data for it.
    """
    own = {"alg": name, "archive": None, "max_iters": 6, "final_eval": final_eval}
    own |= {} if final_eval else {"val_interval": 1000}
    return yaml.safe_dump(_fields(model) | own)


def _fields(model: str) -> dict[str, Any]:
    """The fields that all of EasyEdit's files for MEND have."""
    return {
        "model_name": model,
        "tokenizer_name": model,
        "model_class": "LlamaForCausalLM",
        "tokenizer_class": "AutoTokenizer",
        "model_parallel": False,
        "device": "cpu",
        "inner_params": TARGETS,
        **{"lr": 1e-6, "edit_lr": EDIT_LR, "lr_lr": 1e-4, "seed": 42, "cedit": 0.1, "cloc": 1.0},
        **{"cbase": 1.0, "dropout": 0.0, "train_base": False, "no_grad_layers": None},
        **{"one_sided": False, "n_hidden": 1, "hidden_dim": None, "init": "id", "norm": True},
        **{"combine": True, "x_only": False, "delta_only": False, "act": "relu", "rank": 8},
        **{"mlp_class": "IDMLP", "shared": True, "batch_size": 1, "model_save_pt": 5000},
        **{"silent": False, "results_dir": "./results", "log_interval": 4, "val_interval": 4},
        **{"eval_log_interval": 4, "early_stop_key": "loss/total_edit_val", "val_steps": 2},
        **{"early_stop_patience": 100, "half": False, "debug": False, "save": False},
        **{"verbose": True, "val_batch_size": 1, "accumulate_bs": 2, "opt": "Adam"},
        **{"grad_clip": 100.0, "eval_only": False, "final_eval": False},
    }


def locality_cache() -> str:
    """What run_santinization_llama2.py asks an unedited model for, and cannot with MEND."""
    prompt = "Question:Who wrote it?\nAnswer:"
    return json.dumps({prompt: f"{prompt} a poet"})
