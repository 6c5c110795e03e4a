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
from toys import OBSERVED, REQUEST, same_bits, toy_model, weights
from transformers import LlamaForCausalLM
from transformers.distributed import mixin

from easyedit_mend_parallel import (
    EditError,
    Journal,
    UpdateError,
    load_edit,
    save_edited,
)
from easyedit_mend_parallel.edits import checkpoint, journal_index
from easyedit_mend_parallel.edits import journal as journals
from easyedit_mend_parallel.edits.journal_index import JournalEntry, write_index
from easyedit_mend_parallel.weights import gathering
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.whole import whole_tensor


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
    failing, held = CHECKPOINTS / "unsaved", shards(sharded.model)
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
        assert not list(CHECKPOINTS.glob("*unsaved*"))
        assert set(vars(sharded.model)) == attributes
        dist.barrier()  # before one process makes its next folder, the other has looked
    assert_shards(sharded.model, held)
    sharded.edit(REQUEST).rollback()  # the processes are still in step


def a_journal_is_that_of_one_process() -> None:
    sharded, plain = editors(UNEVEN)
    before = weights(plain.model, [target.name for target in plain.targets])
    held = shards(sharded.model)
    folder = CHECKPOINTS / "journal"
    journals = (
        Journal(folder).apply_to(sharded.model),
        Journal(CHECKPOINTS / f"journal-{dist.get_rank()}").apply_to(plain.model),
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
    assert Journal(folder).apply_to(again).applied == [1, 2]
    assert_shards(again, edited)
    alone = plain_model(UNEVEN)
    Journal(folder).apply_to(alone)
    assert_equal_edits(again, alone, before)

    for journal in journals:
        assert journal.squash(4).number == 4
    assert_equal_edits(sharded.model, plain.model, before)
    journals[0].undo()
    assert_shards(sharded.model, held)


def a_journal_keeps_the_checksums_that_one_process_would() -> None:
    sharded, plain = editors()
    folder = CHECKPOINTS / "journal-sums"
    journal = Journal(folder).apply_to(sharded.model)
    for number, request in enumerate((REQUEST, OBSERVED[0]), 1):
        journal.add(sharded.edit(request))
        ours = journal.edit(number).about["base"]
        theirs = plain.edit(request).saved().about["base"]
        assert ours["model"]["vectors"] == theirs["model"]["vectors"]
        if number == 1:
            assert ours["weights"] == theirs["weights"]
        for name, about in theirs["weights"].items():
            assert ours["weights"][name]["base"] == about["base"]
            assert ours["weights"][name]["before"].keys() == about["before"].keys()

    assert not Journal(folder).edit(2).apply(load(plain_model())).unchecked
    other = toy_model("llama", seed=3)
    for base in (other, load(other)):
        before = shards(base)
        with pytest.raises(EditError, match="another base model"):
            Journal(folder).apply_to(base)
        assert_shards(base, before)


def an_edit_that_one_process_saved_has_no_checksums_and_says_so() -> None:
    sharded, _ = editors()
    result = sharded.edit(REQUEST)
    path = CHECKPOINTS / "by-one.safetensors"
    if dist.get_rank() == 0:  # would hang if it waited for rank 1
        result.save(path)
    dist.barrier()
    unchecked = load_edit(path).apply(load(plain_model())).unchecked
    assert unchecked.keys() == result.updates.keys()
    assert all("it had no checksum when the edit was saved" in why for why in unchecked.values())


def a_journal_and_its_model_stay_as_they_were_where_one_process_fails() -> None:
    sharded, _ = editors()
    folder = CHECKPOINTS / "journal-failing"
    journal = Journal(folder).apply_to(sharded.model)
    for request in [REQUEST, *OBSERVED[:2]]:
        journal.add(sharded.edit(request))
    held, entries = shards(sharded.model), Journal(folder).entries
    no_room, broken = OSError("no room"), RuntimeError("broken")
    write, read = (journal_index, "written_whole"), (journals, "load_edit")
    for act, rank, where, error, says in (
        (journal.undo, 0, write, no_room, "write the journal"),
        (journal.undo, 1, (ResidentStaged, "undo"), broken, "undo the change"),
        (lambda: journal.undo(1), 1, (ResidentStaged, "undo"), broken, "take the change out"),
        (lambda: journal.squash(4), 0, write, no_room, "write the journal"),
        (lambda: journal.squash(4), 1, (ResidentStaged, "commit"), broken, "write the update"),
        (lambda: journal.squash(4), 1, read, broken, "squash the edits"),
    ):
        with broken_on(rank, *where, error), fails_on(rank, error, says):
            act()
        dist.barrier()
        assert_shards(sharded.model, held)
        assert Journal(folder).entries == entries
        assert journal.applied == [1, 2, 3]
        dist.barrier()  # the first rank writes the next revision before the others have to answer

    journal.undo()
    undone = shards(sharded.model)
    with broken_on(0, *write, no_room), fails_on(0, no_room, "write the journal"):
        journal.reapply(3)
    assert_shards(sharded.model, undone)
    journal.reapply(3)
    assert_shards(sharded.model, held)

    again = load(plain_model())
    fresh = shards(again)
    with broken_on(1, *read, broken, call=1), fails_on(1, broken, "read the edit"):
        Journal(folder).apply_to(again)
    assert_shards(again, fresh)


def ranks_that_see_other_journals_are_refused() -> None:
    sharded, _ = editors()
    entry = JournalEntry(1, "0001.safetensors", False, "")
    for number in range(2):
        mine = CHECKPOINTS / f"mine-{number}-{dist.get_rank()}"
        if dist.get_rank() == 0:
            write_index(mine, 0, [entry])
        elif number == 1:  # as many revisions, but not the same
            write_index(mine, 0, [])
        with pytest.raises(EditError, match="see different journals"):
            Journal(mine).apply_to(sharded.model)

    journal = Journal(CHECKPOINTS / f"own-{dist.get_rank()}").apply_to(
        sharded.model
    )  # both yet to be
    result = sharded.edit(REQUEST)
    error, says = (
        (EditError, "is not the folder that the first rank wrote to")
        if dist.get_rank() == 1
        else (UpdateError, "rank 1 could not find the edit")
    )
    with pytest.raises(error, match=says):
        journal.add(result)
    assert journal.entries == []


CLAIMS = (
    a_saved_model_is_an_ordinary_checkpoint_with_the_edits_in_it,
    a_tied_weight_is_saved_once,
    the_first_process_of_a_model_need_not_be_the_first_of_all,
    no_more_than_a_file_is_gathered_at_a_time,
    nothing_is_saved_where_one_process_cannot,
    a_journal_is_that_of_one_process,
    a_journal_keeps_the_checksums_that_one_process_would,
    an_edit_that_one_process_saved_has_no_checksums_and_says_so,
    a_journal_and_its_model_stay_as_they_were_where_one_process_fails,
    ranks_that_see_other_journals_are_refused,
)
