"""What is claimed of a model that DeepSpeed's ZeRO-3 partitions: most of what is claimed of a
sharded one, and what is its own. Every process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import deepspeed
import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin
from deepspeed.runtime.zero import parameter_offload
from deepspeed.utils import safe_get_local_fp32_param
from sharded import claims, failures, fully, keeping, models, scoped
from sharded.fully import again, run
from sharded.models import (
    MLP,
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    broken_on_rank_1,
    editor_of,
    fails_on_rank_1,
    full,
    names_of,
    network_of,
    plain_model,
    shards,
)
from torch import Tensor, nn
from torch import distributed as dist
from toy_experts import stacks, toy_mixture
from toys import (
    OBSERVED,
    REQUEST,
    REQUESTS,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    weights,
)
from transformers.integrations import HfDeepSpeedConfig

from easyedit_mend_parallel import (
    EditError,
    Journal,
    MendParallel,
    PlacementError,
    UpdateError,
    load_edit,
)
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights import zero3
from easyedit_mend_parallel.weights.norm import weight_norm
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.stores.partitioned import PartitionedStore
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate
from easyedit_mend_parallel.weights.whole import whole_tensor

_engines: list[Any] = []
"""Engines live as long as the process: DeepSpeed's hooks are theirs."""
SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.1)


def configuration(persistent: int = 100, stage: int = 3, **options: Any) -> dict[str, Any]:
    """A configuration of DeepSpeed under which parameters of up to `persistent` elements (the
    norms') stay whole."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": persistent}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero | options.pop("zero", {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **options,
    }


def engine_of(model: Any, optimizer: Any = None, **options: Any) -> Any:
    """DeepSpeed's engine of the model itself."""
    half = next(model.parameters()).dtype == torch.bfloat16
    config = configuration(bf16={"enabled": half}, **options)
    chosen = {} if optimizer is None else {"optimizer": optimizer(model.parameters())}
    engine, *_ = deepspeed.initialize(model=model, config=config, **chosen)
    _engines.append(engine)
    return engine


def partition(model: Any, **options: Any) -> Any:
    """A copy of `model` that ZeRO-3 partitions over all processes."""
    return engine_of(copy.deepcopy(model), **options).module.eval()


partitioned = partial(again, load=partition, kind="partitioned")
"""The claim of a model that ZeRO-3 partitions."""


def masters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what the optimizer of this process holds of every parameter, in fp32."""
    return {
        name: safe_get_local_fp32_param(parameter).detach().clone()
        for name, parameter in model.named_parameters()
    }


def step(engine: Any, scale: float = 1.0) -> None:
    """A step of the engine's optimizer along `scale` times the gradient of the requests."""
    batch = make_batch(engine.module, tokenizer_for(engine.module), as_requests(REQUESTS))
    engine.backward(scale * batch.losses(engine(**batch.inputs).logits).sum())
    engine.step()


def whatever_stays_whole_an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit() -> None:
    plain = plain_model(UNEVEN)  # 25 rows of 16 columns: a part ends in the middle of a row
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    unedited = plain_model(UNEVEN)
    expected = editor_of(plain, network, names).edit(REQUESTS, losses_after=True)
    for persistent in (0, 10**6):
        model = partition(unedited, persistent=persistent)
        held, logits = shards(model), run(model)
        result = editor_of(model, network, names).edit(REQUESTS, losses_after=True)
        assert_equal_edits(model, plain, before)
        assert result.losses == pytest.approx(expected.losses, rel=1e-4)
        assert result.losses_after == pytest.approx(expected.losses_after, rel=1e-4)
        torch.testing.assert_close(run(model), run(plain), rtol=1e-4, atol=1e-4)
        for name, backup in result.entry.before().items():
            assert same_bits(backup, held[name][: backup.numel()])
        result.rollback()
        assert_shards(model, held)
        assert same_bits(run(model), logits)


def a_conv1d_is_edited_as_in_one_process() -> None:
    plain = toy_model("gpt2")
    names = [f"transformer.h.{n}.mlp.{x}.weight" for n in (4, 5) for x in ("c_fc", "c_proj")]
    network, before = network_of(plain, names), weights(plain, names)
    model = partition(plain)
    held = shards(model)
    editor_of(plain, network, names).edit(REQUEST)
    result = editor_of(model, network, names).edit(REQUEST)
    assert_equal_edits(model, plain, before)
    result.rollback()
    assert_shards(model, held)


def a_part_with_padding_is_edited_and_gathered() -> None:
    plain = nn.Sequential(nn.Linear(3, 5, bias=False))  # 8 and 7 of 15 elements
    nn.init.normal_(plain[0].weight)
    dist.broadcast(plain[0].weight.data, 0)
    model = partition(plain)
    [target] = find_targets(model, ["0.weight"])
    assert target.shape == (3, 5)
    weight, was = model[0].weight, plain[0].weight.detach()
    assert same_bits(whole_tensor(weight), was)
    keys, values = torch.arange(6.0).view(2, 3), torch.arange(10.0).view(2, 5)
    staged = store_for(model, target).stage(LowRankUpdate(keys, values, torch.zeros(2).long()))
    staged.commit()
    torch.testing.assert_close(whole_tensor(weight), was + values.T @ keys)
    assert same_bits(full(model, "0.weight"), whole_tensor(weight))
    assert weight_norm(model, target) == pytest.approx(float(whole_tensor(weight).norm()))
    staged.undo()
    assert same_bits(whole_tensor(weight), was)


def the_optimizers_values_and_the_weights_rounded_from_them_are_edited() -> None:
    plain = plain_model(UNEVEN, dtype=torch.bfloat16)
    names = names_of(plain)
    network = network_of(plain, names)
    for options in (
        {"optimizer": SGD},
        {
            "optimizer": ADAM,
            "zero": {"sub_group_size": 1000, "offload_optimizer": {"device": "cpu"}},
        },
    ):
        engine = engine_of(copy.deepcopy(plain), **options)
        model = engine.module.eval()
        held, exact = shards(model), masters(model)
        frozen = model.get_parameter(names[0]).requires_grad_(False)
        result = editor_of(model, network, names).edit(REQUEST)
        frozen.requires_grad_(True)
        now, parts = masters(model), shards(model)
        for name in names:
            update = result.updates[name]
            change = (update.values.T @ update.keys).flatten()
            size, rank = now[name].numel(), dist.get_rank()
            mine = change[size * rank :][:size]
            ours = (now[name] - exact[name])[: len(mine)]
            assert (ours - mine).abs().max() <= 1e-5 * mine.abs().max() + 1e-6
            assert same_bits(now[name].to(torch.bfloat16), parts[name])
        step(engine, scale=0.0)
        assert_shards(model, parts)
        model.eval()
        result.rollback()
        assert_shards(model, held)
        assert all(same_bits(now, exact[name]) for name, now in masters(model).items())


def where_the_optimizer_has_no_values_of_its_own_an_edit_is_written_once_and_stays() -> None:
    def of_others(parameters: Any) -> Any:
        return ADAM([one for one in parameters if one.requires_grad])

    # In fp32 the optimizer changes the weights themselves; frozen ones it does not know.
    for dtype, frozen in ((torch.float32, False), (torch.bfloat16, True)):
        plain = plain_model(UNEVEN, dtype=dtype)
        names = names_of(plain)
        network, before = network_of(plain, names), weights(plain, names)
        model = copy.deepcopy(plain)
        for name in names:
            model.get_parameter(name).requires_grad_(not frozen)
        engine = engine_of(model.eval(), optimizer=of_others)
        held = shards(model)
        editor_of(plain, network, names).edit(REQUEST)
        result = editor_of(model, network, names).edit(REQUEST)
        edited = shards(model)
        assert all(not same_bits(edited[name], held[name]) for name in names)
        assert all(model.get_parameter(name).requires_grad != frozen for name in names)
        if not frozen:
            assert_equal_edits(model, plain, before)
        step(engine, scale=0.0)
        assert_shards(model, edited)
        model.eval()
        result.rollback()
        assert_shards(model, held)


def an_edit_that_breaks_off_between_the_two_leaves_both_as_they_were() -> None:
    plain = plain_model(dtype=torch.bfloat16)
    names = names_of(plain)
    network, model = network_of(plain, names), partition(plain, optimizer=SGD)
    held, exact = shards(model), masters(model)
    editor = editor_of(model, network, names)
    for call in (0, 5):
        error = KeyboardInterrupt()
        with (
            broken_on_rank_1(PartitionedStore, "_round", error, call),
            fails_on_rank_1(error, "write the update"),
        ):
            editor.edit(REQUEST)
        assert_shards(model, held)
        assert all(same_bits(now, exact[name]) for name, now in masters(model).items())
    name = names[-1]
    model.get_parameter(name).ds_tensor.add_(1)  # by somebody else, and not in the optimizer
    with pytest.raises(UpdateError, match=r"refresh_fp32_params"):
        editor.edit(REQUEST)


def training_goes_on_as_if_there_had_been_no_edit() -> None:
    plain = plain_model(dtype=torch.bfloat16)
    names = names_of(plain)
    network = network_of(plain, names)
    ends = []
    for edits in (False, True):
        engine = engine_of(copy.deepcopy(plain), optimizer=ADAM)
        step(engine)
        if edits:
            engine.module.eval()
            editor_of(engine.module, network, names).edit(REQUEST).rollback()
        step(engine)
        ends.append((shards(engine.module), masters(engine.module)))
    for one, other in zip(*ends, strict=True):
        assert all(same_bits(values, other[name]) for name, values in one.items())


def an_edit_from_before_the_engine_is_undone_after_it() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, base = network_of(plain, names), weights(plain, names)
    alone = copy.deepcopy(plain)
    (first, second), (twin, _) = (
        [editor_of(one, network, names).edit(request) for request in (REQUEST, OBSERVED[0])]
        for one in (plain, alone)
    )
    model = engine_of(plain).module.eval()
    assert model is plain
    for result in (first, twin):
        result.rollback()
    assert_equal_edits(model, alone, base)
    second.rollback()
    assert all(same_bits(full(model, name), was) for name, was in base.items())


def a_model_that_transformers_partitions_is_edited_and_saved() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    folder = models.CHECKPOINTS / "to-partition"
    if dist.get_rank() == 0:
        plain.save_pretrained(folder)
    dist.barrier()
    enabled = HfDeepSpeedConfig(configuration())
    model = type(plain).from_pretrained(folder, attn_implementation="eager")
    del enabled  # what is loaded later is not partitioned
    with pytest.raises(PlacementError, match=r"no engine gathers .* deepspeed\.initialize"):
        editor_of(model, network, names)
    model = engine_of(model).module.eval()
    held = shards(model)
    assert sum(part.numel() for part in held.values()) < 0.6 * plain.num_parameters()
    folder = models.CHECKPOINTS / "edited-partitioned"
    fully.is_edited_and_saved(model, plain, network, folder, max_shard_size="8KB")


def saved_edits_go_from_one_process_to_partitions_and_back() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model, other = partition(plain), toy_model("llama", seed=3)
    folder = models.CHECKPOINTS / "journal-partitioned"
    journal = Journal(folder).apply_to(model)
    journal.add(editor_of(model, network, names).edit(REQUEST))
    about = journal.edit(1).about["base"]
    result = editor_of(plain, network, names).edit(REQUEST)
    theirs = result.saved().about["base"]
    assert about["model"] == theirs["model"]
    assert about["weights"] == theirs["weights"]
    path = models.CHECKPOINTS / f"one-{dist.get_rank()}.safetensors"
    result.save(path)
    journal.undo()
    assert not load_edit(path).apply(model).unchecked
    assert_equal_edits(model, plain, before)
    result.rollback()
    Journal(folder).apply_to(plain)
    with pytest.raises(EditError, match="another base model"):
        load_edit(path).apply(partition(other))


def a_solved_sequence_is_verified_as_in_one_process() -> None:
    plain = plain_model()
    names = [MLP.format(5, "up"), MLP.format(5, "down")]
    network, model = network_of(plain, names), partition(plain)
    found = []
    for one in (plain, model):
        editor = editor_of(one, network, names, aggregate="least_squares")
        for request in (REQUEST, OBSERVED[0]):
            editor.edit(request)
        found.append(editor.verify())
    assert len(found[0]) == 2
    for expected, ours in zip(*found, strict=True):
        assert (ours.request, ours.answer, ours.holds) == (
            expected.request,
            expected.answer,
            expected.holds,
        )


def a_forward_pass_that_fails_on_every_rank_leaves_the_model_usable() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, model = network_of(plain, names), partition(plain)
    held, logits = shards(model), run(model)
    editor = editor_of(model, network, names)
    depth = len(parameter_offload.FWD_MODULE_STACK)

    def fails(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = model.model.layers[4].mlp.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="broken"):
        editor.edit(REQUEST)
    handle.remove()
    assert len(parameter_offload.FWD_MODULE_STACK) == depth
    assert_shards(model, held)
    assert same_bits(run(model), logits)
    editor.edit(REQUEST).rollback()
    assert_shards(model, held)


def what_cannot_be_edited_is_refused_by_its_name() -> None:
    plain = plain_model()
    names = [MLP.format(5, "up")]
    network, model = network_of(plain, names), partition(plain, optimizer=SGD)
    held, engine = shards(model), _engines[-1]
    weight = model.get_parameter(names[0])
    with pytest.raises(PlacementError, match=r"engine\.module"):
        MendParallel(engine, tokenizer_for(model), toy_hparams(names), network=network)
    for owner, name, value, says in (
        (weight, "nvme_swapper", object(), "kept on NVMe"),
        (weight, "ds_zero_param_process_group", dist.group.WORLD, "zero_hpz_partition_size"),
        (weight, "ds_process_group", object(), "over other processes"),
        (weight, "comm", object(), "MiCS"),
        (weight.ds_tensor, "ds_quant_scale", object(), "zero_quantized_weights"),
        (engine.optimizer, "swap_optimizer", True, "offload_optimizer: nvme"),
        (engine.optimizer, "zenflow", True, "zenflow"),
    ):
        had = getattr(owner, name, None)
        setattr(owner, name, value)
        with pytest.raises(PlacementError, match=says):
            editor_of(model, network, names)
        if had is None and name in ("comm", "ds_quant_scale"):
            delattr(owner, name)
        else:
            setattr(owner, name, had)
    group = weight.ds_process_group
    del weight.ds_process_group  # as of an older DeepSpeed
    with pytest.raises(PlacementError, match=r"DeepSpeed .* have no ds_process_group: .* too old"):
        editor_of(model, network, names)
    weight.ds_process_group = group
    editor_of(model, network, names).edit(REQUEST).rollback()
    assert_shards(model, held)

    mixture = toy_mixture("mixtral")
    [stack, *_] = stacks(mixture)
    with pytest.raises(PlacementError, match="experts can be edited only where"):
        find_targets(partition(mixture), [stack])


def of_zero_1_it_is_said_that_the_next_step_takes_the_edit_out() -> None:
    plain = plain_model(dtype=torch.bfloat16)
    names = names_of(plain)
    network = network_of(plain, names)
    engine = engine_of(plain, optimizer=SGD, stage=1)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda one: seen.append(one.getMessage())  # type: ignore[method-assign]
    zero3.logger.addHandler(handler)
    held = weights(plain, names)
    for _ in range(2):
        editor = editor_of(engine.module.eval(), network, names)
        editor.edit(REQUEST)
    zero3.logger.removeHandler(handler)
    assert len(seen) == 1
    assert names[0] in seen[0]
    step(engine, scale=0.0)
    assert all(same_bits(plain.get_parameter(name).detach(), was) for name, was in held.items())


def ranks_with_different_engines_are_refused() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    both = partition(plain), fully.split(plain)
    with pytest.raises(PlacementError, match="split it in different ways"):
        editor_of(both[dist.get_rank()], network, names)


def a_model_that_accelerate_prepares_is_edited() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    plugin = DeepSpeedPlugin(hf_ds_config=configuration(), zero3_init_flag=False)
    accelerator = Accelerator(deepspeed_plugin=plugin)
    model = copy.deepcopy(plain)
    engine, _ = accelerator.prepare(model, SGD(model.parameters()))
    _engines.append(engine)
    assert accelerator.unwrap_model(engine) is model.eval()
    held = shards(model)
    assert sum(part.numel() for part in held.values()) < 0.6 * plain.num_parameters()
    editor_of(plain, network, names).edit(REQUEST)
    result = editor_of(model, network, names).edit(REQUEST)
    assert_equal_edits(model, plain, before)
    result.rollback()
    assert_shards(model, held)


CLAIMS = (
    whatever_stays_whole_an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit,
    a_conv1d_is_edited_as_in_one_process,
    a_part_with_padding_is_edited_and_gathered,
    the_optimizers_values_and_the_weights_rounded_from_them_are_edited,
    where_the_optimizer_has_no_values_of_its_own_an_edit_is_written_once_and_stays,
    an_edit_that_breaks_off_between_the_two_leaves_both_as_they_were,
    training_goes_on_as_if_there_had_been_no_edit,
    an_edit_from_before_the_engine_is_undone_after_it,
    a_model_that_transformers_partitions_is_edited_and_saved,
    saved_edits_go_from_one_process_to_partitions_and_back,
    a_solved_sequence_is_verified_as_in_one_process,
    a_forward_pass_that_fails_on_every_rank_leaves_the_model_usable,
    what_cannot_be_edited_is_refused_by_its_name,
    of_zero_1_it_is_said_that_the_next_step_takes_the_edit_out,
    ranks_with_different_engines_are_refused,
    *map(
        partitioned,
        (
            claims.so_it_does_in_bfloat16_within_the_stated_bound,
            claims.edits_solved_together_equal_those_of_one_process,
            claims.tied_embeddings_follow_an_edited_head,
            claims.edits_in_a_row_and_an_undo_in_the_middle_equal_those_of_one_process,
            claims.an_edit_without_a_trained_network_takes_the_step_that_one_process_takes,
            failures.an_exception_on_one_rank_leaves_no_rank_edited,
            failures.an_undo_that_fails_on_one_rank_leaves_every_rank_edited,
            failures.a_last_forward_that_fails_takes_the_edit_out_again,
            failures.ranks_with_different_requests_or_networks_are_refused,
            keeping.nothing_is_saved_where_one_process_cannot,
            keeping.a_journal_is_that_of_one_process,
            scoped.scoped_edits_are_felt_as_in_one_process,
            fully.edits_of_outputs_are_felt_saved_and_removed,
        ),
    ),
    a_model_that_accelerate_prepares_is_edited,  # last: it sets up the whole process
)
