"""What is claimed of a model that torch's `fully_shard` (FSDP2) splits: most of what is claimed of
a tensor-parallel one, and what is its own. Every process runs every claim, in the order of
`CLAIMS`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded import claims, failures, keeping, models, scoped
from sharded.models import (
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    editor_of,
    full,
    local,
    names_of,
    network_of,
    patched,
    plain_model,
    shards,
    with_parallel_blocks,
)
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Shard
from toys import OBSERVED, REQUEST, REQUESTS, same_bits, tokenizer_for, toy_model, weights
from transformers.distributed import DistributedConfig

from easyedit_mend_parallel import Journal, PlacementError, save_edited
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork


def split(model: Any, root: bool = True, **options: Any) -> Any:
    """A copy of `model`, each block of which torch splits over all processes, and, with `root`, the
    rest of it as well."""
    model = copy.deepcopy(model)
    mesh = options.pop("mesh", None) or default_mesh()
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options) if root else model


def default_mesh() -> DeviceMesh:
    """All processes; four of them hold two copies of the model (HSDP)."""
    if dist.get_world_size() == 2:
        return init_device_mesh("cpu", (2,))
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def again(
    claim: Callable[[], None], load: Callable[..., Any] = split, kind: str = "fully_sharded"
) -> Callable[[], None]:
    """The claim of a tensor-parallel model, about one that `load` makes."""

    def claimed() -> None:
        with ExitStack() as stack:
            for module in (models, claims, failures, keeping, scoped):
                stack.enter_context(patched(module, "load", load))
            folder = keeping.CHECKPOINTS / kind  # not that of the tensor-parallel claims
            folder.mkdir(exist_ok=True)
            stack.enter_context(patched(keeping, "CHECKPOINTS", folder))
            claim()

    claimed.__name__ = f"{kind}_{claim.__name__}"
    return claimed


def split_twice(model: Any) -> Any:
    """A copy of `model` whose blocks are tensor parallel, and which torch splits once more over
    other processes (FSDP2 over TP)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tp"))
    return split(with_parallel_blocks(copy.deepcopy(model), mesh["tp"]), mesh=mesh["data"])


def run(model: Any) -> torch.Tensor:
    """A forward pass of the user's own; FSDP2 leaves some weights whole after it."""
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
    with torch.no_grad():
        logits: torch.Tensor = model(**batch.inputs).logits
    return logits


def however_its_weights_are_gathered_an_edit_is_that_of_one_process() -> None:
    plain = plain_model(UNEVEN)
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    unedited = plain_model(UNEVEN)
    editor_of(plain, network, names).edit(REQUEST)
    for options in (
        {"reshard_after_forward": False},
        {"root": False},
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    ):
        model = split(unedited, **options)
        held = shards(model)
        run(model)
        editor = editor_of(model, network, names)
        run(model)
        result = editor.edit(REQUEST)
        torch.testing.assert_close(run(model), run(plain), rtol=1e-4, atol=1e-4)
        assert_equal_edits(model, plain, before)
        run(model)
        result.rollback()
        assert_shards(model, held)


def a_model_that_transformers_splits_is_edited_and_saved() -> None:
    plain = plain_model()
    network = network_of(plain, names_of(plain))
    model = models.load(plain, distributed_config=DistributedConfig(fsdp_size=2))
    held = shards(model)
    assert any(hasattr(module, "reshard") for module in model.modules())
    assert sum(weight.numel() for weight in held.values()) < 0.6 * plain.num_parameters()
    is_edited_and_saved(model, plain, network, models.CHECKPOINTS / "edited-fully")


def is_edited_and_saved(
    model: Any, plain: Any, network: Hypernetwork, folder: Path, **options: Any
) -> None:
    """An edit of `model` is that of `plain`, the checkpoint in `folder` has the edited weights, and
    an undo restores the bits."""
    names = names_of(plain)
    before, held = weights(plain, names), shards(model)
    editor_of(plain, network, names).edit(REQUEST)
    result = editor_of(model, network, names).edit(REQUEST)
    loaded = type(plain).from_pretrained(save_edited(model, folder, **options))
    for name, weight in loaded.named_parameters():
        assert same_bits(weight.detach(), full(model, name)), name
    assert_equal_edits(model, plain, before)
    result.rollback()
    assert_shards(model, held)


def of_a_model_that_computes_in_bfloat16_the_fp32_weights_are_edited() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model = split(plain, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    held = shards(model)
    half = copy.deepcopy(plain).to(torch.bfloat16)
    expected = editor_of(half, network, names).edit(REQUEST)
    result = editor_of(model, network, names).edit(REQUEST)
    for name in names:
        update = expected.updates[name]
        change = update.values.T @ update.keys
        ours = full(model, name) - before[name]
        assert full(model, name).dtype == torch.float32
        largest = change.abs().max()
        assert (ours - change).abs().max() <= 16 * torch.finfo(torch.bfloat16).eps * largest
        update = result.updates[name]  # and without a rounding to bfloat16
        exact = (update.values.T @ update.keys - ours).abs().max()
        assert exact <= 1e-5 * largest
    result.rollback()
    assert_shards(model, held)


def edits_of_outputs_are_felt_saved_and_removed() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model = models.load(plain)
    held, logits = shards(model), run(model)
    written = editor_of(plain, network, names)
    written.edit(REQUEST)
    editor = editor_of(model, network, names, apply="output")
    result = editor.edit(REQUEST)
    torch.testing.assert_close(run(model), run(plain), rtol=1e-4, atol=1e-4)
    folder = save_edited(model, keeping.CHECKPOINTS / "edited-outputs")
    assert_equal_edits(type(plain).from_pretrained(folder), plain, before)
    assert_shards(model, held)
    result.rollback()
    assert same_bits(run(model), logits)


def a_journal_goes_from_one_process_to_shards_and_back() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model, other = split(plain, reshard_after_forward=False), toy_model("llama", seed=3)
    editor = editor_of(model, network, names)
    folder = models.CHECKPOINTS / "journal-fully"
    journal = Journal(folder).apply_to(model)
    run(model)
    for request in (REQUEST, OBSERVED[0]):
        journal.add(editor.edit(request))
        run(model)
    about = journal.edit(1).about["base"]
    assert about["model"]["class"] == "LlamaForCausalLM"
    Journal(folder).apply_to(plain)
    assert_equal_edits(model, plain, before)
    with pytest.raises(Exception, match="another base model"):
        Journal(folder).apply_to(split(other))


def a_forward_pass_that_fails_on_every_rank_leaves_the_model_usable() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    model = split(plain)
    held, logits = shards(model), run(model)
    editor = editor_of(model, network, names)

    def fails(*_: Any) -> None:
        raise RuntimeError("broken")

    handle = model.model.layers[4].mlp.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="broken"):
        editor.edit(REQUEST)
    handle.remove()
    assert_shards(model, held)
    assert same_bits(run(model), logits)
    editor.edit(REQUEST).rollback()
    assert_shards(model, held)


def training_goes_on_as_if_there_had_been_no_edit() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    grads = []
    for edits in (False, True):
        model = split(plain)
        run(model)
        if edits:
            editor_of(model, network, names).edit(REQUEST).rollback()
        batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
        batch.losses(model(**batch.inputs).logits).sum().backward()
        grads.append({name: local(weight.grad) for name, weight in model.named_parameters()})
    assert all(same_bits(grads[0][name], grad) for name, grad in grads[1].items())


def what_cannot_be_edited_is_refused_by_its_name() -> None:
    plain = plain_model()
    names = [name for name in names_of(plain) if ".5." in name]
    network = network_of(plain, names)

    older = plain_model()
    older.model.layers[4] = FullyShardedDataParallel(
        older.model.layers[4], device_id=torch.device("cpu")
    )
    partitioned = plain_model()
    partitioned.lm_head.weight.ds_id = 0  # as DeepSpeed's ZeRO-3 marks a parameter
    stages = init_device_mesh("cpu", (2, 1), mesh_dim_names=("pp", "dp"))
    broken = split(plain)
    weight = broken.model.layers[5].mlp.up_proj.weight
    weight._local_tensor = weight._local_tensor[:-1]
    for model, says in (
        (older, r"layers\.4 is wrapped in FullyShardedDataParallel \(FSDP1\)"),
        (partitioned, r"lm_head\.weight is partitioned by DeepSpeed .*: this version is too old"),
        (split(plain, mesh=stages["dp"]), r"pipeline stages \('pp' of \('pp', 'dp'\)\)"),
        (broken, r"up_proj.* has a part of shape \(11, 16\) .* says \(12, 16\)"),
    ):
        with pytest.raises(PlacementError, match=says):
            editor_of(model, network, names)


def a_model_on_a_mesh_of_one_process_is_edited_alone() -> None:
    plain = plain_model()
    names = [name for name in names_of(plain) if ".5." in name]
    network, before = network_of(plain, names), weights(plain, names)
    # A name of its own: torch takes a mesh of the same ranks and name for one that it has made.
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replica", "only"))["only"]
    model = split(plain, mesh=mesh)
    held = shards(model)
    options = {"aggregate": "least_squares"}
    editor_of(plain, network, names, **options).edit(REQUESTS)
    if dist.get_rank() == 0:  # would hang if it waited for rank 1
        result = editor_of(model, network, names, **options).edit(REQUESTS)
        claims.assert_close(model, plain, before, 1e-2)
        result.rollback()
        assert_shards(model, held)


def ranks_that_split_the_model_in_different_ways_are_refused() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)

    def by_rank(weight: nn.Parameter) -> Shard:
        return Shard(weight.dim() - 1 if dist.get_rank() else 0)

    model = split(plain, root=False, shard_placement_fn=by_rank)
    with pytest.raises(PlacementError, match="split it in different ways"):
        editor_of(model, network, names)


CLAIMS = (
    *map(
        again,
        (
            claims.an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit,
            claims.so_it_does_where_the_widths_are_uneven,
            claims.so_it_does_in_bfloat16_within_the_stated_bound,
            claims.a_batch_that_is_solved_has_the_update_of_one_process,
            claims.edits_solved_together_equal_those_of_one_process,
            claims.tied_embeddings_follow_an_edited_head,
            claims.edits_in_a_row_and_an_undo_in_the_middle_equal_those_of_one_process,
            claims.updates_attached_to_outputs_are_felt_and_differentiated_as_in_one_process,
            claims.an_edit_without_a_trained_network_takes_the_step_that_one_process_takes,
            claims.an_edit_gets_as_long_as_its_answer_takes_in_one_process,
            failures.an_exception_on_one_rank_leaves_no_rank_edited,
            failures.an_undo_that_fails_on_one_rank_leaves_every_rank_edited,
            failures.a_last_forward_that_fails_takes_the_edit_out_again,
            failures.ranks_with_different_requests_or_networks_are_refused,
            keeping.nothing_is_saved_where_one_process_cannot,
            keeping.a_journal_is_that_of_one_process,
            scoped.scoped_edits_are_felt_as_in_one_process,
            scoped.generation_is_that_of_one_process_with_a_cache_and_without,
            scoped.a_scope_without_training_is_the_same_on_each_process,
            edits_of_outputs_are_felt_saved_and_removed,
        ),
    ),
    however_its_weights_are_gathered_an_edit_is_that_of_one_process,
    a_model_that_transformers_splits_is_edited_and_saved,
    of_a_model_that_computes_in_bfloat16_the_fp32_weights_are_edited,
    a_journal_goes_from_one_process_to_shards_and_back,
    a_forward_pass_that_fails_on_every_rank_leaves_the_model_usable,
    training_goes_on_as_if_there_had_been_no_edit,
    what_cannot_be_edited_is_refused_by_its_name,
    a_model_on_a_mesh_of_one_process_is_edited_alone,
    ranks_that_split_the_model_in_different_ways_are_refused,
)
