"""A folder in which the pages' blocks run: EasyEdit's yaml files under their own names, where the
pages say 7B models for toys that have archives, and records to train on.

Knows which fields a file needs, and nothing of what the pages do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import toys
import yaml
from toy_facts import ZSRE_RECORDS

from easyedit_mend_parallel import save_archive


def make(folder: Path = Path()) -> tuple[Any, Any]:
    """Write the project into `folder` (default: where the process runs); its model and tokenizer.

    `hparams/MEND/llama-7b.yaml` edits and `hparams/TRAINING/MEND/llama-7b.yaml` trains toys, with
    `train.json` and `eval.json` to train on. `gpt` in the folder's name sends both EasyEdits to the
    tokenizer's class.
    """
    model, tokenizer = toys.toy_model("llama"), toys.byte_level_tokenizer()
    names = toys.toy_targets(model)
    archive = save_archive(
        folder / "archive.pt",
        toys.downhill_network(model, tokenizer, names),
        model_config=model.config.to_dict(),
    )
    _save(model, tokenizer, folder / "toy-gpt")
    _save(model, toys.toy_tokenizer(side="left"), folder / "toy-llama")
    edits = {"model_name": "./toy-gpt", "archive": str(archive), "inner_params": names}
    _write(folder / "hparams/MEND/llama-7b.yaml", edits)
    trains = {
        "model_name": "./toy-llama",
        "tokenizer_name": "./toy-llama",
        "model_class": "LlamaForCausalLM",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "archive": None,
        "inner_params": names,
    }
    _write(folder / "hparams/TRAINING/MEND/llama-7b.yaml", trains)
    for name in ("train.json", "eval.json"):
        (folder / name).write_text(json.dumps(ZSRE_RECORDS), encoding="utf-8")
    return model, tokenizer


def least() -> dict[str, Any]:
    """The fields that a file of hyperparameters has to have, for any model."""
    return {
        "alg_name": "MEND",
        "alg": "MEND",
        "model_name": "toy",
        "inner_params": ["model.layers.5.mlp.up_proj.weight"],
        "archive": None,
        "rank": 6,
        "edit_lr": -1e-2,
        **toys.NETWORK_FIELDS,
    }


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write(path: Path, values: dict[str, Any]) -> None:
    short = {
        "device": "cpu",
        "batch_size": 1,
        "val_batch_size": 2,
        "val_steps": 1,
        "accumulate_bs": 1,
        "max_iters": len(ZSRE_RECORDS),  # an epoch, since the early release makes whole ones
        "results_dir": "results",
    }
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(least() | short | values), encoding="utf-8")
