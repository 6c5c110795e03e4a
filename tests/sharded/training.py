"""What is claimed of a hypernetwork that is trained over a model that torch's `fully_shard` (FSDP2)
splits: it is the one that a process with the whole model trains. Every process runs every claim, in
the order of `CLAIMS`."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from sharded import models
from sharded.fully import split, split_twice
from sharded.models import assert_shards, patched, plain_model, same_everywhere, shards
from torch import Tensor
from torch import distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy
from trained import runs
from trained.runs import data, facts, furthest, state

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.training import trainer as trainer_module
from easyedit_mend_parallel.training.processes import Processes
from easyedit_mend_parallel.training.trainer import Trainer

OPTIONS = {"final_eval": False, "lr": 1e-3, "lr_lr": 1e-5, "max_iters": 2, "val_interval": 0}
BOUND = 1e-5
"""The largest difference, of the largest change of its tensor, after one step; twice that after
two."""
EDITS_PER_STEP = 4


class Alone(Processes):
    """What a single process has for `Processes`, in a job that has others."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        self.index, self.count = 0, 1

    def wait(self) -> None:
        pass


def folder(name: str, *, own: bool = False) -> Path:
    """A new folder of this claim, of all processes or of each."""
    return models.CHECKPOINTS / "trained" / (f"{name}-{dist.get_rank()}" if own else name)


def trainer(
    name: str, model: Any, *, alone: bool = False, accumulated: int = 1, **options: Any
) -> Trainer:
    """A run of all processes, or of each `alone`; with as many edits a step, either way."""
    count = 1 if alone else dist.get_world_size()
    given = OPTIONS | {
        "batch_size": EDITS_PER_STEP // count // accumulated,
        "accumulate_bs": accumulated,
    }
    with patched(trainer_module, "Processes", Alone if alone else Processes):
        return runs.trainer(folder(name, own=alone), model=model, **(given | options))


def moved(run: Trainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run it: how far each tensor moved, and the statistics."""
    begun = state(run)
    run.run()
    now = state(run)
    statistics = {n: t for n, t in now.items() if n.endswith(("_mean", "_std", "_s", ".k"))}
    assert statistics
    changed = {name: now[name] - begun[name] for name in now if name not in statistics}
    assert furthest(now, begun) > 1e-4, "the run has to move something"
    return changed, statistics


def assert_same_learning(name: str, plain: Any, model: Any, **options: Any) -> None:
    """All processes learn over `model` what one learns with `plain`, and change no weight."""
    held = shards(model)
    shared = trainer(f"{name}-shared", model, **options)
    changed, statistics = moved(shared)
    expected, of_one = moved(trainer(f"{name}-alone", copy.deepcopy(plain), alone=True, **options))
    assert furthest(statistics, of_one) < BOUND
    steps, now = shared.progress.step, state(shared)
    for tensor, change in expected.items():
        # What moved by less than its own rounding is compared to one unit in the last place.
        last_place = torch.finfo(change.dtype).eps * now[tensor].abs().max()
        apart = (changed[tensor] - change).abs().max()
        assert apart <= BOUND * steps * change.abs().max() + last_place, (name, tensor, apart)
    assert all(map(same_everywhere, state(shared).values()))
    assert_shards(model, held)
    assert all(weight.grad is None for weight in model.parameters())


def processes_learn_over_shards_what_one_learns() -> None:
    plain = plain_model()
    for number, options in enumerate(
        (
            {"max_iters": 1},
            {"max_iters": 1, "trunk_memory": 0},
            {"trunk_memory": 1500},  # room for some texts, in each process for others
            {"continuation_positions": 2},
            {"accumulated": 2} if dist.get_world_size() == 2 else {"locality_examples": 2},
        )
    ):
        assert_same_learning(f"options-{number}", plain, split(plain), **options)


CLAIMS = (processes_learn_over_shards_what_one_learns,)
