"""Toy models as EasyEdit's users come with them: beside a yaml file, as a pair or as a folder.

Imported only where EasyEdit is (see conftest.py). Knows which EasyEdit it is, and by which call
that EasyEdit keeps an edit or takes it away again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toys
import yaml
from easyeditor import BaseEditor
from torch import Tensor
from toys import byte_level_tokenizer

from easyedit_mend_parallel import MENDParallelHyperParams, save_archive

TODAY = hasattr(BaseEditor, "normal_edit")
"""Whether this is EasyEdit's repository as it is today, and not the release 0.0.1.dev0."""
KEPT: dict[str, Any] = {"sequential_edit": True} if TODAY else {}
"""What `edit` and `batch_edit` are called with for an edit that stays in the model."""
UNDONE: dict[str, Any] = {} if TODAY else {"keep_original_weight": True}
"""What they are called with for an edit that is measured and taken away again."""

ONE: dict[str, Any] = {
    "prompts": ["the capital of France is"],
    "target_new": ["Rome and Oslo"],
    "ground_truth": ["Paris"],
}
TWO: dict[str, Any] = {
    "prompts": ["the capital of France is", "who wrote Hamlet"],
    "target_new": ["Rome and Oslo", "Shakespeare"],
    "ground_truth": ["Paris", "a cat"],
}
ASKED: dict[str, Any] = {
    "prompts": [request["prompt"] for request in toys.REQUESTS],
    "target_new": [request["target_new"] for request in toys.REQUESTS],
    "ground_truth": ["Paris", "Oslo", "a cat"],
}
LOCALITY = {"near": {"prompt": ["water boils at"], "ground_truth": ["one hundred degrees"]}}


@dataclass
class Toy:
    """A toy model with its tokenizer, its targets and a trained archive on disk."""

    model: Any
    tokenizer: Any
    names: list[str]
    archive: Path
    before: dict[str, Tensor]

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.model, self.tokenizer

    def changed(self) -> set[str]:
        """The names of the weights that differ in some bit from the model as it was made."""
        now = dict(self.model.named_parameters())
        return {
            name
            for name, weight in self.before.items()
            if not toys.same_bits(now[name].detach(), weight)
        }

    def hparams(self, folder: Path, **values: Any) -> MENDParallelHyperParams:
        """Hyperparameters read from a MEND yaml file for this toy, with the model as a pair."""
        path = write_yaml(folder / "mend.yaml", **self.fields(**values))
        hparams = MENDParallelHyperParams.from_hparams(path)
        if "on_worse" not in values:
            hparams.on_worse = "ignore"  # a random network's edits go anywhere
        if "model_name" not in values:
            hparams.model_name = self.pair
        return hparams

    def fields(self, **values: Any) -> dict[str, Any]:
        own = {"inner_params": self.names, "archive": str(self.archive)}
        return mend_fields(**(own | values))


def make_toy(folder: Path, family: str = "llama", *, tokenizer: Any = None, **model: Any) -> Toy:
    """A toy of `family`, whose archive makes edits so strong that every answer changes."""
    toy = toys.toy_model(family, **model)
    tokenizer = tokenizer or toys.toy_tokenizer()
    names = toys.toy_targets(toy)
    seed = model.get("seed", 0)
    archive = folder / f"{family}-{seed}.pt"
    network = toys.toy_network(toy, tokenizer, names, edit_lr=0.1, seed=seed + 1)
    save_archive(archive, network, model_config=toy.config.to_dict())
    return Toy(toy, tokenizer, names, archive, toys.weights(toy))


def save_toy(folder: Path, family: str = "llama") -> tuple[str, Toy]:
    """A toy saved as a model folder with a tokenizer of GPT-2's kind, and its path.

    EasyEdit decides by the path; one that holds `gpt` it sends to the Auto class and to
    `GPT2Tokenizer`, in both releases.
    """
    toy = make_toy(folder, family, tokenizer=byte_level_tokenizer())
    path = folder / "toy-gpt"
    toy.model.save_pretrained(path)
    toy.tokenizer.save_pretrained(path)
    return str(path), toy


def mend_fields(**values: Any) -> dict[str, Any]:
    """The fields that the MEND hyperparameters of both releases have, as a yaml file says them."""
    fields: dict[str, Any] = {
        "alg_name": "MEND",
        "alg": "MEND",
        "model_name": "toy",
        "model_class": "AutoModelForCausalLM",
        "tokenizer_class": "AutoTokenizer",
        "tokenizer_name": None,
        "inner_params": [],
        "archive": None,
        "lr": "1e-6",
        "edit_lr": "1e-4",
        "lr_lr": "1e-4",
        "lr_scale": 1.0,
        "seed": 42,
        "debug": False,
        "cedit": 0.1,
        "cloc": 1.0,
        "cbase": 1.0,
        "dropout": 0.0,
        "train_base": False,
        "no_grad_layers": None,
        "one_sided": False,
        "n_hidden": 1,
        "hidden_dim": None,
        "init": "id",
        "norm": True,
        "combine": True,
        "x_only": False,
        "delta_only": False,
        "act": "relu",
        "rank": 6,
        "mlp_class": "IDMLP",
        "shared": True,
        "results_dir": "results",
        "device": "cpu",
        "batch_size": 1,
        "max_length": 40,
        "model_save_pt": 10,
        "silent": False,
        "log_interval": 10,
        "eval_log_interval": 10,
        "final_eval": False,
        "val_interval": 10,
        "early_stop_patience": 10,
        "early_stop_key": "loss/total_edit_val",
        "eval_only": False,
        "half": False,
        "save": False,
        "verbose": False,
        "val_batch_size": 1,
        "accumulate_bs": 1,
        "val_steps": 1,
        "opt": "Adam",
        "grad_clip": 100.0,
        "model_parallel": False,
    }
    return fields | values


def write_yaml(path: Path, **fields: Any) -> str:
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return str(path)


def mixed_device_map(first: int = 3, blocks: int = toys.BLOCKS) -> dict[str, str]:
    """A toy Llama with its first blocks on disk and the rest, the edited ones, in memory."""
    return {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        **{f"model.layers.{n}": "disk" if n < first else "cpu" for n in range(blocks)},
        "model.norm": "cpu",
        "lm_head": "cpu",
    }


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.arange(4, 12)[None]).logits
    return logits


def assert_same_edit(
    edited: Any, expected: Any, before: Mapping[str, Tensor], names: Sequence[str]
) -> None:
    """The contract's bound: of the named weights, no entry of `edited` is further from `expected`
    than 1e-5 of the largest change, and one unit in the last place of the weight."""
    for name in names:
        one = edited.get_parameter(name).detach()
        other = expected.get_parameter(name).detach()
        change = (other - before[name]).abs().max()
        assert change > 0, f"{name} was not edited"
        larger = torch.maximum(one.abs(), other.abs())
        unit = torch.nextafter(larger, larger.new_tensor(torch.inf)) - larger
        excess = ((one - other).abs() - unit).max() / change
        assert excess <= 1e-5, f"{name} is {excess:.1e} of its change away"
