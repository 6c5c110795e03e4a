"""Training runs on a toy model: sixteen facts of two relations, a few steps, a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from toys import toy_hparams, toy_model, toy_targets, toy_tokenizer

from easyedit_mend_parallel.evaluation.data import Example, LocalityText
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.trainer import Trainer

SUBJECTS = ("France", "Paris", "Rome", "Oslo", "Seine", "Hamlet", "Shakespeare", "cat")
ANSWERS = ("Rome", "Oslo and Paris", "a river", "stone")
UNRELATED = ("the sun rises in the east", "water boils at one hundred degrees", "my cat sat")


def facts(split: str = "all", **options: Any) -> list[Example]:
    """Sixteen facts, two relations of eight subjects each; `options` replace fields of each."""
    found = []
    for number, subject in enumerate(SUBJECTS):
        for relation, prompt, rephrase in (
            ("capital", f"the capital of {subject} is", f"{subject} stands by"),
            ("river", f"the river in {subject} is", f"through {subject} runs"),
        ):
            answer = ANSWERS[(number + len(relation)) % len(ANSWERS)]
            example = Example(
                Request(prompt, answer),
                (rephrase,),
                subject=subject,
                relation=relation,
                split=split,
            )
            found.append(replace(example, **options))
    return found


def data(**fields: Any) -> Data:
    held = (LocalityText("the old town is"),)
    values = {
        "train": facts(),
        "unrelated": UNRELATED,
        "validation": facts("new", neighbours=held)[:6],
        "validation_unrelated": UNRELATED,
    }
    return Data(**(values | fields))


def trainer(
    folder: Path,
    *,
    model: Any = None,
    of: Data | None = None,
    accelerator: Accelerator | None = None,
    resume: bool = False,
    **options: Any,
) -> Trainer:
    """A run of SGD with a rate at which every tensor moves; `options` are hyperparameters."""
    model = toy_model("llama") if model is None else model
    values = toy_hparams(toy_targets(model), edit_lr=-1e-2).to_dict() | {
        "batch_size": 4,
        "accumulate_bs": 1,
        "max_iters": 4,
        "opt": "SGD",
        "lr": 0.1,
        "lr_lr": 1e-3,
        "log_interval": 1,
        "val_interval": 2,
        "model_save_pt": 2,
        "max_length": 40,
        "cedit": 1.0,
        "statistics_examples": 8,
    }
    hparams = MENDParallelTrainingHparams(**(values | options))
    return Trainer(
        model,
        toy_tokenizer(),
        hparams,
        of or data(),
        folder,
        accelerator=accelerator or Accelerator(cpu=True),
        resume=resume,
        quiet=True,
    )


def state(run: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in run.network.state_dict().items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two states, relative to the largest entry of its tensor."""
    return (
        max(
            (
                (one[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-12)
            ).item()
            for name in other
            if not torch.equal(one[name], other[name])
        )
        if any(not torch.equal(one[name], other[name]) for name in other)
        else 0.0
    )
