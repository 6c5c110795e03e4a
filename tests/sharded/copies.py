"""What is claimed of a model of which four processes hold two copies, each split in two by torch's
`fully_shard` (HSDP). Every process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

from sharded import claims, failures, keeping
from sharded.fully import again, split
from sharded.models import (
    UNEVEN,
    assert_equal_edits,
    assert_shards,
    broken_on,
    editor_of,
    fails_on,
    names_of,
    network_of,
    plain_model,
    shards,
)
from torch import distributed as dist
from toys import REQUEST, REQUESTS, weights

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
)
