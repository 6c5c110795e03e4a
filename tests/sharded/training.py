"""What is claimed of a hypernetwork that is trained over a model that torch's `fully_shard` (FSDP2)
splits: it is the one that a process with the whole model trains. Every process runs every claim, in
the order of `CLAIMS`."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from sharded import models
from sharded.fully import run, split, split_twice
from sharded.models import UNEVEN, assert_shards, patched, plain_model, same_everywhere, shards
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from toys import toy_targets, toy_tokenizer
from trained import runs
from trained.runs import data, facts, furthest, state

from easyedit_mend_parallel import load_archive
from easyedit_mend_parallel.cli.loading import load_model
from easyedit_mend_parallel.cli.train import command
from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.files import read_tensors
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.training import trainer as trainer_module
from easyedit_mend_parallel.training.processes import Processes
from easyedit_mend_parallel.training.trainer import Trainer

OPTIONS = {"final_eval": False, "lr": 1e-3, "lr_lr": 1e-5, "max_iters": 2, "val_interval": 0}
BOUND = 1e-5
"""The largest difference, of the largest change of its tensor, after one step; twice that after
two."""
EDITS_PER_STEP = 4
EXAMPLE = Path(__file__).parents[2] / "hparams/TRAINING/MEND_PARALLEL/llama-7b-fsdp2.yaml"


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


def assert_same_learning(
    name: str, plain: Any, model: Any, *, bound: float = BOUND, **options: Any
) -> None:
    """All processes learn over `model` what one learns with `plain`, and change no weight."""
    held = shards(model)
    shared = trainer(f"{name}-shared", model, **options)
    changed, statistics = moved(shared)
    alone = trainer(f"{name}-alone", copy.deepcopy(plain), alone=True, **options)
    expected, of_one = moved(alone)
    assert furthest(statistics, of_one) < bound
    assert_same_change(changed, expected, state(alone), bound * shared.progress.step)
    assert all(map(same_everywhere, state(shared).values()))
    assert_shards(model, held)
    assert all(weight.grad is None for weight in model.parameters())


def assert_same_change(
    changed: dict[str, Tensor], expected: dict[str, Tensor], now: dict[str, Tensor], bound: float
) -> None:
    """Within `bound` of a tensor's largest change, and one unit in the last place of the tensor."""
    for tensor, change in expected.items():
        last_place = torch.finfo(change.dtype).eps * now[tensor].abs().max()
        apart = (changed[tensor] - change).abs().max()
        assert apart <= bound * change.abs().max() + last_place, (tensor, apart)


def processes_learn_over_shards_what_one_learns() -> None:
    plain = plain_model()
    for number, options in enumerate(
        (
            {"max_iters": 1},
            {"max_iters": 1, "trunk_memory": 0},
            {"trunk_memory": 1500},  # room for some texts, in each process for others
            {"continuation_positions": 2},
            {"accumulated": 2},
        )
    ):
        assert_same_learning(f"options-{number}", plain, split(plain), **options)


def copies_of_shards_learn_what_one_process_learns() -> None:
    plain = plain_model()
    assert_same_learning("copies", plain, split(plain), max_iters=1)


def however_its_weights_are_gathered_they_learn_the_same() -> None:
    plain = plain_model(UNEVEN)
    for number, options in enumerate(
        (
            {"reshard_after_forward": False},
            {"root": False},
            {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
        )
    ):
        model = split(plain, **options)
        run(model)  # leaves some weights whole, and not frozen
        assert_same_learning(f"gathered-{number}", plain, model, max_iters=1)
        model = split(plain, **options)
        assert_same_learning(f"gathered-whole-{number}", plain, model, max_iters=1, trunk_memory=0)


def a_model_that_computes_in_bfloat16_is_trained_on_as_in_one_process() -> None:
    plain = plain_model()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replica", "only"))["only"]
    own = trainer("half-alone", split(plain, mp_policy=policy, mesh=mesh), alone=True, max_iters=1)
    expected, of_one = moved(own)
    changed, statistics = moved(trainer("half", split(plain, mp_policy=policy), max_iters=1))
    bound = 16 * torch.finfo(torch.bfloat16).eps
    assert furthest(statistics, of_one) < bound
    assert_same_change(changed, expected, state(own), bound)


def blocks_below_the_targets_are_not_gathered_by_a_step() -> None:
    plain = plain_model()
    gathered = {steps: gathered_blocks(split(plain), steps) for steps in (1, 3)}
    lowest = 3
    assert all(map(int.__ge__, gathered[1][:lowest], gathered[3][:lowest]))
    assert all(map(int.__lt__, gathered[1][lowest:], gathered[3][lowest:]))


def gathered_blocks(model: Any, steps: int) -> list[int]:
    """How often the weights of each block are gathered in a run of some steps."""
    blocks = list(model.model.layers)
    counts = [0] * len(blocks)
    unshards = FSDPParamGroup.unshard

    def unshard(group: Any, *args: Any) -> None:
        if not group.is_unsharded:
            for module in set(group.modules) & set(blocks):
                counts[blocks.index(module)] += 1
        unshards(group, *args)

    with patched(FSDPParamGroup, "unshard", unshard):
        trainer(f"gathered-{steps}", model, max_iters=steps).run()
    return counts


def edits_that_are_solved_together_are_those_of_processes_with_whole_models() -> None:
    plain = plain_model()
    options = {
        "solved_edits": 2,
        "aggregate": "least_squares",
        "aggregate_options": {"preserved_text_weight": 0.1, "continuation_weight": 1.0},
    }
    learnt = []
    for name, model in (("copies", copy.deepcopy(plain)), ("shards", split(plain))):
        one = trainer(f"solved-{name}", model, **options)
        changed, _ = moved(one)
        learnt.append((changed, state(one)))
    (expected, now), (changed, _) = learnt
    assert_same_change(changed, expected, now, 2 * BOUND)


def what_one_process_lost_of_the_kept_states_is_computed_again() -> None:
    plain = plain_model()
    options = {
        "trunk_folder": str(folder("kept")),
        "trunk_memory": 0,
        "trunk_disk": "1MiB",
        "continuation_positions": 2,
        "max_iters": 1,
    }
    first = trainer("kept-first", split(plain), **options)
    expected, _ = moved(first)
    dist.barrier()
    if dist.get_rank() == 0:
        assert list((folder("kept") / "process-1").iterdir())
        shutil.rmtree(folder("kept") / "process-1")
    dist.barrier()
    changed, _ = moved(trainer("kept-second", split(plain), **options))
    assert_same_change(changed, expected, state(first), BOUND)


def processes_with_fewer_facts_measure_what_one_measures() -> None:
    plain = plain_model()
    for number in (5, 1):  # the last process has two, or none
        held = data(validation=data().validation[:number])
        options = {"of": held, "val_batch_size": 2, "val_interval": 1, "max_iters": 1}
        shared = trainer(f"measured-{number}", split(plain), **options)
        shared.run()
        alone = trainer(f"measured-{number}-alone", copy.deepcopy(plain), alone=True, **options)
        alone.run()
        [found], [expected] = shared.evaluations, alone.evaluations
        assert found.flat() == pytest.approx(expected.flat(), rel=1e-3, abs=1e-5)


def a_run_is_resumed_with_another_number_of_processes() -> None:
    plain = plain_model()
    options = {"max_iters": 4, "model_save_pt": 2}
    whole = trainer("whole", copy.deepcopy(plain), alone=True, **options)
    expected, _ = moved(whole)
    for name, first, second in (("fewer", False, True), ("more", True, False)):
        begun = trainer(
            name, split(plain) if not first else copy.deepcopy(plain), alone=first, **options
        )
        before = state(begun)
        with patched(Trainer, "_is_over", lambda run, _: run.progress.step == 2):
            begun.run()
        dist.barrier()
        for rank in range(dist.get_world_size()):
            target = folder(name, own=False) if first else folder(f"{name}-{rank}")
            source = folder(f"{name}-0") if first else folder(name)
            if dist.get_rank() == 0 and not target.exists():
                shutil.copytree(source, target)
        dist.barrier()
        model = copy.deepcopy(plain) if second else split(plain)
        resumed = trainer(name, model, alone=second, resume=True, **options)
        resumed.run()
        assert resumed.progress.step == 4
        now = state(resumed)
        changed = {tensor: now[tensor] - before[tensor] for tensor in expected}
        assert_same_change(changed, expected, state(whole), 4 * BOUND)
        with pytest.raises(TrainingError, match="other hyperparameters or data"):
            trainer(name, model, alone=second, resume=True, **options, accumulate_bs=3).run()
        dist.barrier()


def the_example_file_splits_a_model_and_trains_on_it() -> None:
    model = plain_model()
    target, base = folder("example"), folder("example-base")
    if dist.get_rank() == 0:
        model.save_pretrained(base)
        toy_tokenizer().save_pretrained(base)
        write_facts(base / "facts.jsonl")
        values = yaml.safe_load(EXAMPLE.read_text()) | {
            "model_name": str(base),
            "tokenizer_name": str(base),
            "tokenizer_class": "AutoTokenizer",
            "inner_params": toy_targets(model),
            "rank": 8,
            "max_iters": 2,
            "accumulate_bs": 1,
        }
        (base / "run.yaml").write_text(yaml.safe_dump(values))
    dist.barrier()
    hparams = MENDParallelTrainingHparams.from_hparams(base / "run.yaml")
    loaded, _ = load_model(hparams, torch.device("cpu"))
    held = sum(part.numel() for part in shards(loaded).values())
    assert held < 0.6 * model.num_parameters()
    assert next(loaded.parameters()).dtype == torch.bfloat16
    facts_file = base / "facts.jsonl"
    with patched(Accelerator, "end_training", lambda _: None):  # it ends all communication
        command(base / "run.yaml", facts_file, facts_file, target, None, False, None, None)
    dist.barrier()
    assert load_archive(target / "archive.safetensors").header["step"] == 2
    _, header = read_tensors(target / "last.safetensors")
    assert header["progress"]["configuration"]["edits_per_step"] == 2, "one of each process"
    values = yaml.safe_load((base / "run.yaml").read_text())
    values["model_kwargs"]["distributed_config"]["fsdp_size"] = 3
    with pytest.raises(HparamsError, match=r"cannot be split as .* processes, but world_size is 2"):
        load_model(MENDParallelTrainingHparams(**values))


def write_facts(path: Path) -> None:
    lines = [
        {
            "prompt": fact.request.prompt,
            "target_new": fact.request.target_new,
            "rephrases": list(fact.rephrases),
            "subject": fact.subject,
            "relation": fact.relation,
        }
        for fact in facts()
    ]
    path.write_text("\n".join(map(json.dumps, lines)))


def what_cannot_be_trained_on_is_refused_by_its_name() -> None:
    plain = plain_model()
    with pytest.raises(TrainingError, match=r"embed_tokens\.weight is split by tensor parallelism"):
        trainer("refused", models.load(plain))
    with pytest.raises(TrainingError, match=r"2 processes were started .* knows of 1: each would"):
        Processes(SimpleNamespace(num_processes=1))  # as accelerate is by itself without a GPU
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    with pytest.raises(TrainingError, match=r"asks for FSDP \(use_fsdp\), .*fsdp_size"):
        trainer("refused", copy.deepcopy(plain))
    del os.environ["ACCELERATE_USE_FSDP"]


def a_model_that_is_split_twice_is_refused() -> None:
    with pytest.raises(TrainingError, match="is split by tensor parallelism"):
        trainer("refused", split_twice(plain_model()))


CLAIMS = (
    processes_learn_over_shards_what_one_learns,
    however_its_weights_are_gathered_they_learn_the_same,
    a_model_that_computes_in_bfloat16_is_trained_on_as_in_one_process,
    blocks_below_the_targets_are_not_gathered_by_a_step,
    edits_that_are_solved_together_are_those_of_processes_with_whole_models,
    what_one_process_lost_of_the_kept_states_is_computed_again,
    processes_with_fewer_facts_measure_what_one_measures,
    a_run_is_resumed_with_another_number_of_processes,
    the_example_file_splits_a_model_and_trains_on_it,
    what_cannot_be_trained_on_is_refused_by_its_name,
)
