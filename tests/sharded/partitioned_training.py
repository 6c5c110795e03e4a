"""What is claimed of a hypernetwork that is trained over a model that DeepSpeed's ZeRO-3
partitions: it is the one that a process with the whole model trains. Every process runs every
claim, in the order of `CLAIMS`."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from sharded import models
from sharded.models import assert_shards, plain_model, shards
from sharded.partitioned import ADAM, engine_of, partition
from sharded.training import (
    assert_same_change,
    assert_same_learning,
    data,
    moved,
    state,
    trainer,
)

from easyedit_mend_parallel import PlacementError
from easyedit_mend_parallel.training.trainer import Trainer


def processes_learn_over_partitions_what_one_learns() -> None:
    plain = plain_model()
    for number, (persistent, options) in enumerate(
        (
            (0, {"max_iters": 1}),
            (10**6, {"max_iters": 1, "trunk_memory": 0}),
            (100, {"trunk_memory": 1500}),
            (100, {"continuation_positions": 2, "accumulated": 2}),
        )
    ):
        model = partition(plain, persistent=persistent)
        assert_same_learning(f"partitions-{number}", plain, model, **options)


def beside_an_optimizer_of_the_engine_they_learn_the_same() -> None:
    plain = plain_model(dtype=torch.bfloat16)
    model = partition(plain, optimizer=ADAM)
    held = shards(model)
    changed, _ = moved(trainer("engine", model, max_iters=1))
    alone = trainer("engine-alone", copy.deepcopy(plain), alone=True, max_iters=1)
    expected, _ = moved(alone)
    bound = 16 * torch.finfo(torch.bfloat16).eps
    assert_same_change(changed, expected, state(alone), bound)
    assert_shards(model, held)


def processes_with_fewer_facts_measure_what_one_measures() -> None:
    plain = plain_model()
    held = data(validation=data().validation[:5])
    options = {"of": held, "val_batch_size": 2, "val_interval": 1, "max_iters": 1}
    shared = trainer("measured-partitions", partition(plain), **options)
    shared.run()
    alone = trainer("measured-whole", copy.deepcopy(plain), alone=True, **options)
    alone.run()
    [found], [expected] = shared.evaluations, alone.evaluations
    assert found.flat() == pytest.approx(expected.flat(), rel=1e-3, abs=1e-5)


def what_cannot_be_trained_on_is_refused_by_its_name() -> None:
    engine, nothing = engine_of(plain_model()), cast(Any, None)
    with pytest.raises(PlacementError, match=r"engine\.module"):
        Trainer(engine, nothing, nothing, nothing, models.CHECKPOINTS)
    weight = engine.module.lm_head.weight
    weight.nvme_swapper = object()
    with pytest.raises(PlacementError, match="kept on NVMe"):
        Trainer(engine.module, nothing, nothing, nothing, models.CHECKPOINTS)


CLAIMS = (
    processes_learn_over_partitions_what_one_learns,
    beside_an_optimizer_of_the_engine_they_learn_the_same,
    processes_with_fewer_facts_measure_what_one_measures,
    what_cannot_be_trained_on_is_refused_by_its_name,
)
