"""What is claimed of keeping the edits of a tensor-parallel model: it is saved as an ordinary
checkpoint, and its journal is that of one process. Every process runs every claim, in the order of
`CLAIMS`."""

from __future__ import annotations

import os
import weakref

import pytest
from safetensors import safe_open
from sharded.models import (
    CHECKPOINTS,
    HEAD,
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    broken_on,
    editor_of,
    editors,
    fails_on,
    full,
    load,
    made_parallel,
    names_of,
    network_of,
    patched,
    plain_model,
    shards,
)
from torch import Tensor
from torch import distributed as dist
from toys import OBSERVED, REQUEST, same_bits, weights
from transformers import LlamaForCausalLM
from transformers.distributed import mixin

from easyedit_mend_parallel import EditError, Journal, gathering, save_edited
from easyedit_mend_parallel.edits import checkpoint
from easyedit_mend_parallel.sharding import whole_tensor


def a_saved_model_is_an_ordinary_checkpoint_with_the_edits_in_it() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    before = weights(plain, names)
    editor_of(plain, network, names).edit(REQUEST)
    models = (
        load(plain_model()),
        load(plain_model(), tp_plan="auto"),
        made_parallel(plain_model()),
    )
    for number, model in enumerate(models):
        sharded = editor_of(model, network, names)
        sharded.edit(REQUEST)
        held, plan = shards(model), getattr(model.config, "distributed_config", None)
        folder = CHECKPOINTS / f"edited-{number}"

        save_edited(sharded.model, folder, sharded.tokenizer)

        loaded = LlamaForCausalLM.from_pretrained(folder)
        for name, weight in loaded.named_parameters():
            assert same_bits(weight.detach(), full(sharded.model, name)), name
        assert_equal_edits(sharded.model, plain, before)
        assert_shards(sharded.model, held)
        assert getattr(model.config, "distributed_config", None) is plan
        assert (folder / "tokenizer.json").is_file()


def a_tied_weight_is_saved_once() -> None:
    plain = plain_model(tied=True)
    network = network_of(plain, [HEAD])
    sharded = load(plain)
    editor_of(sharded, network, [HEAD]).edit(REQUEST)

    folder = save_edited(sharded, CHECKPOINTS / "edited-tied")

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert HEAD not in list(file.keys())
    loaded = LlamaForCausalLM.from_pretrained(folder)
    assert same_bits(loaded.lm_head.weight.detach(), full(sharded, HEAD))


def the_first_process_of_a_model_need_not_be_the_first_of_all() -> None:
    model = made_parallel(plain_model())
    # as of a second model, on ranks 2 and 3
    with patched(mixin, "_get_torch_distributed_rank", lambda: dist.get_rank() + 2):
        folder = save_edited(model, CHECKPOINTS / "edited-second")
    for name, weight in LlamaForCausalLM.from_pretrained(folder).named_parameters():
        assert same_bits(weight.detach(), full(model, name)), name


def no_more_than_a_file_is_gathered_at_a_time() -> None:
    model = made_parallel(plain_model())
    gathered: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watched(part: Tensor) -> Tensor:
        tensors = [tensor for ref in gathered if (tensor := ref()) is not None]
        alive.append(sum(tensor.nbytes for tensor in tensors))
        whole = whole_tensor(part)
        gathered.append(weakref.ref(whole))
        return whole

    with patched(gathering, "whole_tensor", watched):
        folder = save_edited(model, CHECKPOINTS / "edited-files", max_shard_size="8KB")

    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(sizes) > 4
    assert len(gathered) == 6 * 7 + 1  # every split weight of six blocks and the head, once
    assert max(alive) <= (max(sizes) if dist.get_rank() == 0 else 0)
    for name, weight in LlamaForCausalLM.from_pretrained(folder).named_parameters():
        assert same_bits(weight.detach(), full(model, name)), name


def nothing_is_saved_where_one_process_cannot() -> None:
    sharded, _ = editors()
    failing, held = CHECKPOINTS / "failing", shards(sharded.model)
    attributes = set(vars(sharded.model))
    no_room, no_memory = OSError("no room"), MemoryError()
    gather, saving = (gathering, "whole_tensor"), "save the model"
    for rank, where, error, call, says in (
        (0, (checkpoint, "new_folder"), EditError("not empty"), 0, "make the folder"),
        (0, (type(sharded.model), "save_pretrained"), no_room, 0, saving),
        (0, gather, no_memory, 0, saving),
        (0, gather, no_memory, 20, saving),
        (1, gather, no_memory, 0, "gather a tensor"),
        (1, gather, KeyboardInterrupt(), 20, "gather a tensor"),
        (1, gather, no_memory, 42, "gather a tensor"),  # the last
        (0, (os, "replace"), no_room, 0, "move the saved model"),
    ):
        after = where is gather  # a collective that one leaves out holds up the others
        with broken_on(rank, *where, error, call, after), fails_on(rank, error, says):
            save_edited(sharded.model, failing)
        dist.barrier()
        assert not list(CHECKPOINTS.glob("*failing*"))
        assert set(vars(sharded.model)) == attributes
    assert_shards(sharded.model, held)
    sharded.edit(REQUEST).rollback()  # the processes are still in step


def a_journal_is_that_of_one_process() -> None:
    sharded, plain = editors(UNEVEN)
    before = weights(plain.model, [target.name for target in plain.targets])
    held = shards(sharded.model)
    folder = CHECKPOINTS / "journal"
    journals = (
        Journal(folder, sharded.model),
        Journal(CHECKPOINTS / f"journal-{dist.get_rank()}", plain.model),
    )
    for request in [REQUEST, *OBSERVED[:2]]:
        for journal, editor in zip(journals, (sharded, plain), strict=True):
            journal.add(editor.edit(request))

    for journal in journals:
        assert journal.undo(2) == "recomputed"
    assert_equal_edits(sharded.model, plain.model, before)
    for journal in journals:
        assert journal.undo() == "restored"
        journal.reapply(2)
        assert journal.applied == [1, 2]
    assert_equal_edits(sharded.model, plain.model, before)
    edited = shards(sharded.model)

    again = load(plain_model(UNEVEN))
    assert Journal(folder, again).applied == [1, 2]
    assert_shards(again, edited)
    alone = plain_model(UNEVEN)
    Journal(folder, alone)
    assert_equal_edits(again, alone, before)

    for journal in journals:
        assert journal.squash(4).number == 4
    assert_equal_edits(sharded.model, plain.model, before)
    journals[0].undo()
    assert_shards(sharded.model, held)


def ranks_that_see_other_journals_are_refused() -> None:
    sharded, _ = editors()
    mine = CHECKPOINTS / f"mine-{dist.get_rank()}"
    if dist.get_rank() == 0:
        Journal(mine)._write([])

    with pytest.raises(EditError, match="see different journals"):
        Journal(mine, sharded.model)


CLAIMS = (
    a_saved_model_is_an_ordinary_checkpoint_with_the_edits_in_it,
    a_tied_weight_is_saved_once,
    the_first_process_of_a_model_need_not_be_the_first_of_all,
    no_more_than_a_file_is_gathered_at_a_time,
    nothing_is_saved_where_one_process_cannot,
    a_journal_is_that_of_one_process,
    ranks_that_see_other_journals_are_refused,
)
