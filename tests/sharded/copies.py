"""What is claimed of a model of which four processes hold two copies, each split in two by torch's
`fully_shard` (HSDP), and of a tensor-parallel one that it splits once more (FSDP2 over TP). Every
process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sharded import claims, failures, keeping, training
from sharded.fully import again, run, split, split_twice
from sharded.models import (
    CHECKPOINTS,
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    broken_on,
    editor_of,
    fails_on,
    full,
    names_of,
    network_of,
    plain_model,
    shards,
)
from torch import distributed as dist
from toys import REQUEST, REQUESTS, same_bits, weights

from easyedit_mend_parallel import Journal, save_edited
from easyedit_mend_parallel.edits.base import sums_of
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged


def copies_are_equal_to_the_bit_after_an_edit() -> None:
    plain = plain_model(UNEVEN)
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model = split(plain)
    held = shards(model)
    editor_of(plain, network, names).edit(REQUESTS)
    results = []
    for rank in range(4):
        error = RuntimeError("broken")
        with (
            broken_on(rank, ResidentStaged, "commit", error, 2),
            fails_on(rank, error, "write the update"),
        ):
            editor_of(model, network, names).edit(REQUESTS)
        assert_shards(model, held)
    results.append(editor_of(model, network, names).edit(REQUESTS))
    found: list[dict[str, object]] = [{} for _ in range(4)]
    dist.all_gather_object(found, {name: sums_of(part) for name, part in shards(model).items()})
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]
    results.append(editor_of(model, network, names).edit(REQUEST))
    for result in results:
        result.rollback()
    assert_shards(model, held)
    editor_of(model, network, names).edit(REQUEST)
    editor = editor_of(plain_model(UNEVEN), network, names)
    editor.edit(REQUEST)
    assert_equal_edits(model, editor.model, before)


def twice(claim: Callable[[], None]) -> Callable[[], None]:
    """The claim, about a model that is split by FSDP2 over TP."""
    return again(claim, split_twice, "split_twice")


def a_model_that_is_split_twice_computes_with_an_edit_as_one_process() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model, alone = split_twice(plain_model()), plain_model()
    held, logits = shards(model), run(model)
    assert sum(one.numel() for one in held.values()) < 0.5 * plain.num_parameters()
    torch.testing.assert_close(logits, run(alone), rtol=1e-4, atol=1e-4)
    editor_of(alone, network, names).edit(REQUEST)
    result = editor_of(model, network, names).edit(REQUEST)
    torch.testing.assert_close(run(model), run(alone), rtol=1e-4, atol=1e-4)
    assert_equal_edits(model, alone, before)
    result.rollback()
    assert_shards(model, held)
    assert same_bits(run(model), logits)


def what_is_kept_of_a_model_that_is_split_twice_is_as_of_one_process() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, before = network_of(plain, names), weights(plain, names)
    model, folder = split_twice(plain), CHECKPOINTS / "split_twice"
    journal = Journal(folder / "journal").apply_to(model)
    journal.add(editor_of(model, network, names).edit(REQUEST))
    save_edited(model, folder / "model")
    loaded = type(plain).from_pretrained(folder / "model")
    for name, weight in loaded.named_parameters():
        assert same_bits(weight.detach(), full(model, name)), name
    Journal(folder / "journal").apply_to(plain)
    assert_equal_edits(model, plain, before)


CLAIMS = (
    copies_are_equal_to_the_bit_after_an_edit,
    *map(
        again,
        (
            claims.an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit,
            claims.edits_solved_together_equal_those_of_one_process,
            claims.an_edit_without_a_trained_network_takes_the_step_that_one_process_takes,
            failures.ranks_with_different_requests_or_networks_are_refused,
            keeping.nothing_is_saved_where_one_process_cannot,
            keeping.a_journal_is_that_of_one_process,
        ),
    ),
    a_model_that_is_split_twice_computes_with_an_edit_as_one_process,
    *map(
        twice,
        (
            claims.an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit,
            claims.edits_solved_together_equal_those_of_one_process,
            claims.an_edit_without_a_trained_network_takes_the_step_that_one_process_takes,
            failures.an_exception_on_one_rank_leaves_no_rank_edited,
        ),
    ),
    what_is_kept_of_a_model_that_is_split_twice_is_as_of_one_process,
    training.copies_of_shards_learn_what_one_process_learns,
    training.a_model_that_is_split_twice_is_refused,
)
