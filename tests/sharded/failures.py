"""What is claimed where something goes wrong on a tensor-parallel model: no process is edited, or
none is undone. Every process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sharded.models import (
    MLP,
    assert_equal_edits,
    assert_shards,
    broken_on_rank_1,
    editor_of,
    editors,
    fails_on_rank_1,
    load,
    local,
    names_of,
    network_of,
    patched,
    plain_model,
    same_everywhere,
    shards,
)
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from toys import OBSERVED, REQUEST, toy_hparams, weights
from transformers.distributed import DistributedConfig

from easyedit_mend_parallel import MendParallel, PlacementError, RequestError, UpdateError
from easyedit_mend_parallel import editor as editing
from easyedit_mend_parallel.errors import ArchiveError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged, ResidentStore

STEPS = [
    (editing, "make_batch", RequestError("no room"), 0, "make the batch"),
    (Hypernetwork, "forward", torch.OutOfMemoryError("no room"), 0, "compute the update"),
    (ResidentStore, "stage", MemoryError("no room"), 0, "stage the update"),
    (ResidentStore, "stage", UpdateError("float16"), 3, "stage the update"),
    (ResidentStaged, "commit", KeyboardInterrupt(), 0, "write the update"),
    (ResidentStaged, "commit", RuntimeError("broken"), 11, "write the update"),
]


def an_exception_on_one_rank_leaves_no_rank_edited() -> None:
    sharded, plain = editors()
    before = weights(plain.model, [target.name for target in plain.targets])
    held = shards(sharded.model)
    for owner, name, error, call, says in STEPS:
        for after in (False, True):
            with broken_on_rank_1(owner, name, error, call, after), fails_on_rank_1(error, says):
                sharded.edit(REQUEST)
            assert_shards(sharded.model, held)
            assert not Ledger.of(sharded.model)._records
    plain.edit(REQUEST)
    sharded.edit(REQUEST)  # and nothing is left over: the next edit is right
    assert_equal_edits(sharded.model, plain.model, before)


def an_undo_that_fails_on_one_rank_leaves_every_rank_edited() -> None:
    sharded, _ = editors()
    held = shards(sharded.model)
    first, second = sharded.edit(REQUEST), sharded.edit(OBSERVED[0])
    edited = shards(sharded.model)
    error = RuntimeError("broken")
    for result, name, says in (
        (second, "undo", "undo the change"),
        (first, "undo", "take the change out"),
        (first, "commit", "take the change out"),
    ):
        for call in (0, 5):
            with broken_on_rank_1(ResidentStaged, name, error, call), fails_on_rank_1(error, says):
                result.rollback()
            assert_shards(sharded.model, edited)
            assert result.entry.applied
    with (
        broken_on_rank_1(ResidentStore, "stage", error, 1),
        fails_on_rank_1(error, "stage the way back"),
    ):
        first.rollback()
    assert_shards(sharded.model, edited)
    with (
        broken_on_rank_1(ResidentStaged, "undo", error, 4),
        fails_on_rank_1(error, "undo every change"),
    ):
        sharded.rollback_all()
    sharded.rollback_all()
    assert_shards(sharded.model, held)


def an_archive_that_one_rank_cannot_read_is_an_error_on_every_rank() -> None:
    _, plain = editors()
    sharded = load(plain.model)
    error = ArchiveError("not here")
    with (
        patched(editing, "read_trained", lambda *_, **__: plain.trained),
        broken_on_rank_1(editing, "read_trained", error),
        fails_on_rank_1(error, "prepare the editor"),
    ):
        MendParallel(
            sharded, plain.tokenizer, toy_hparams([target.name for target in plain.targets])
        )


def a_last_forward_that_fails_takes_the_edit_out_again() -> None:
    sharded, _ = editors()
    held = shards(sharded.model)
    calls = iter([Batch.call])

    def second_call_breaks(batch: Batch, model: Any) -> Any:
        return next(calls)(batch, model)

    with patched(Batch, "call", second_call_breaks), pytest.raises(StopIteration):
        sharded.edit(REQUEST, losses_after=True)
    assert_shards(sharded.model, held)


def ranks_with_different_requests_or_networks_are_refused() -> None:
    sharded, _ = editors()
    held = shards(sharded.model)
    mine = REQUEST if dist.get_rank() == 0 else {**REQUEST, "target_new": "Oslo and Rome"}
    with pytest.raises(RequestError, match="were given different requests"):
        sharded.edit(mine)
    if dist.get_rank() == 1:
        with torch.no_grad():
            sharded.network.edit_lrs.mul_(2)
    with pytest.raises(UpdateError, match="computed different updates"):
        sharded.edit(REQUEST)
    assert_shards(sharded.model, held)


def a_whole_weight_in_a_split_model_is_edited_on_every_rank_or_none() -> None:
    name = MLP.format(5, "down")
    plan = {f"model.layers.*.mlp.{x}_proj": "colwise_gather_output" for x in ("gate", "up")}
    plan |= {"model.layers.*.mlp.down_proj": "replicate"}
    sharded, plain = editors(
        names=[name], distributed_config=DistributedConfig(tp_plan=plan, tp_size=2)
    )
    before, held = weights(plain.model, [name]), shards(sharded.model)
    assert held[name].shape == before[name].shape

    error = RuntimeError("broken")
    with broken_on_rank_1(ResidentStaged, "commit", error), fails_on_rank_1(error, "write the"):
        sharded.edit(REQUEST)
    assert_shards(sharded.model, held)

    plain.edit(REQUEST)
    sharded.edit(REQUEST)
    assert_equal_edits(sharded.model, plain.model, before)
    assert same_everywhere(local(sharded.model.get_parameter(name)))


def what_is_no_plain_tensor_parallelism_is_refused() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    config = DistributedConfig(tp_plan={"lm_head": "colwise"}, tp_size=2)
    editor = editor_of(load(plain, distributed_config=config), network, names)
    held = shards(editor.model)
    with pytest.raises(PlacementError, match=r"of 55 columns .* colwise_gather_output"):
        editor.edit(REQUEST)
    assert_shards(editor.model, held)

    name = MLP.format(5, "up")
    up = plain.get_submodule(name.removesuffix(".weight"))
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("fsdp", "tp"))
    up.weight = torch.nn.Parameter(distribute_tensor(up.weight.detach(), mesh, [Shard(0)] * 2))
    with pytest.raises(PlacementError, match=r"lies on a mesh with dimensions \('fsdp', 'tp'\)"):
        editor_of(plain, network, [name])


CLAIMS = (
    a_whole_weight_in_a_split_model_is_edited_on_every_rank_or_none,
    an_exception_on_one_rank_leaves_no_rank_edited,
    an_undo_that_fails_on_one_rank_leaves_every_rank_edited,
    an_archive_that_one_rank_cannot_read_is_an_error_on_every_rank,
    a_last_forward_that_fails_takes_the_edit_out_again,
    ranks_with_different_requests_or_networks_are_refused,
    what_is_no_plain_tensor_parallelism_is_refused,
)
