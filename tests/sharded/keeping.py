"""What is claimed of keeping the edits of a tensor-parallel model: it is saved as an ordinary
checkpoint, and its journal is that of one process. Every process runs every claim, in the order of
`CLAIMS`."""

from __future__ import annotations

import pytest
from sharded.models import (
    CHECKPOINTS,
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    editor_of,
    editors,
    full,
    load,
    made_parallel,
    names_of,
    network_of,
    patched,
    plain_model,
    shards,
)
from torch import distributed as dist
from toys import OBSERVED, REQUEST, same_bits, weights
from transformers import LlamaForCausalLM

from easyedit_mend_parallel import EditError, Journal, UpdateError, save_edited


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


def nothing_is_saved_where_the_first_process_cannot() -> None:
    sharded, _ = editors()
    taken, failing = CHECKPOINTS / "taken", CHECKPOINTS / "failing"
    if dist.get_rank() == 0:
        taken.mkdir()
        (taken / "file").touch()
    dist.barrier()

    def no_room(*_: object, **__: object) -> None:
        raise OSError("no room")

    of_first = dist.get_rank() == 0
    for folder, error, says in (
        (taken, EditError, "could not make the folder"),
        (failing, OSError, "could not save the model"),
    ):
        with (
            patched(sharded.model, "save_pretrained", no_room),
            pytest.raises(
                error if of_first else UpdateError, match="" if of_first else f"rank 0 {says}"
            ),
        ):
            save_edited(sharded.model, folder)
    assert not failing.exists()
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
    nothing_is_saved_where_the_first_process_cannot,
    a_journal_is_that_of_one_process,
    ranks_that_see_other_journals_are_refused,
)
