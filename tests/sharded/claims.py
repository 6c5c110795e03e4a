"""What is claimed of an edit of a tensor-parallel model: it is the edit of one process. Every
process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sharded.models import (
    EVEN,
    HEAD,
    MLP,
    SEED,
    UNEVEN,
    assert_equal_edits,
    assert_equal_sums,
    assert_shards,
    editor_of,
    editors,
    exact_sums,
    full,
    load,
    local,
    made_parallel,
    names_of,
    network_of,
    patched,
    plain_model,
    same_everywhere,
    shards,
)
from torch import Tensor
from torch import distributed as dist
from toys import OBSERVED, REQUEST, REQUESTS, same_bits, tokenizer_for, toy_hparams, weights
from transformers.distributed import DistributedConfig
from untrained_toys import answers

from easyedit_mend_parallel import MendParallel, UpdateError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.norm import weight_norm
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached


def _equals(inner: int) -> None:
    sharded, plain = editors(inner, seed=SEED)
    names = [target.name for target in plain.targets]
    before, held = weights(plain.model, names), shards(sharded.model)
    addresses = {name: local(sharded.model.get_parameter(name)).data_ptr() for name in names}
    sizes = {local(sharded.model.get_parameter(MLP.format(5, "up"))).shape[0]}
    assert sizes <= {inner // 2, inner - inner // 2, inner // 4}  # a quarter: split twice

    exact = exact_sums(plain.model, plain.network, names)
    expected = plain.edit(REQUESTS, losses_after=True)
    result = sharded.edit(REQUESTS, losses_after=True)

    assert_equal_sums(sharded.model, plain.model, before, exact)
    assert result.losses == pytest.approx(expected.losses, rel=1e-4)
    assert result.losses_after == pytest.approx(expected.losses_after, rel=1e-4)
    reshard(sharded.model)
    for name in names:
        assert result.updates[name].keys.shape == expected.updates[name].keys.shape
        assert same_everywhere(result.updates[name].keys)
        assert same_everywhere(result.updates[name].values)
        # in place, and the backup is of this process's shard only
        weight = local(sharded.model.get_parameter(name))
        assert weight.data_ptr() == addresses[name]
        backup = result.entry.before()[name]
        assert same_bits(backup, held[name])
        assert backup.shape == weight.shape
        assert backup.shape != before[name].shape
    result.rollback()
    assert_shards(sharded.model, held)


def an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit() -> None:
    _equals(EVEN)


def so_it_does_where_the_widths_are_uneven() -> None:
    _equals(UNEVEN)


def so_it_does_in_bfloat16_within_the_stated_bound() -> None:
    plain = plain_model(UNEVEN, dtype=torch.bfloat16)
    names = names_of(plain)
    network = network_of(plain, names)
    sharded = load(plain)
    before, held = weights(plain, names), shards(sharded)

    editor_of(plain, network, names).edit(REQUEST)
    result = editor_of(sharded, network, names).edit(REQUEST)

    for name in names:
        ours, expected = full(sharded, name), plain.get_parameter(name).detach()
        change = (expected.float() - before[name].float()).abs().max()
        size = torch.maximum(ours.float().abs(), before[name].float().abs())
        unit = torch.finfo(ours.dtype).eps * 2.0 ** (torch.frexp(size)[1] - 1).float()
        bound = unit + 16 * torch.finfo(ours.dtype).eps * change
        assert ((ours.float() - expected.float()).abs() <= bound).all()
        assert not same_bits(ours, before[name])
    result.rollback()
    assert_shards(sharded, held)


def a_batch_that_is_solved_has_the_update_of_one_process() -> None:
    plain = plain_model()
    names = names_of(plain)
    network, sharded = network_of(plain, names), load(plain)
    held = shards(sharded)
    expected, result = (
        editor_of(model, network, names, aggregate="least_squares").edit(REQUESTS)
        for model in (plain, sharded)
    )
    for name, update in result.updates.items():
        assert same_everywhere(update.keys)
        assert same_everywhere(update.values)
        change = expected.updates[name].values.T @ expected.updates[name].keys
        apart = (update.values.T @ update.keys - change).abs().max()
        assert apart <= 1e-3 * change.abs().max()
    result.rollback()
    assert_shards(sharded, held)


def edits_solved_together_equal_those_of_one_process() -> None:
    _solved_equals({})


def so_do_edits_that_leave_the_text_after_their_targets() -> None:
    _solved_equals({"aggregate_options": {"continuation_weight": 10, "preserved_text_weight": 0}})


def _solved_equals(options: dict[str, Any]) -> None:
    plain = plain_model()
    names = names_of(plain)
    network, sharded = network_of(plain, names), load(plain)
    before, held = weights(plain, names), shards(sharded)
    requests = [REQUEST, *OBSERVED[:2]]
    pairs = []
    for model in (plain, sharded):
        editor = editor_of(model, network, names, aggregate="least_squares", **options)
        pairs.append([editor.edit(request) for request in requests])
    on_one, on_ranks = pairs
    assert_close(sharded, plain, before, 1e-2)
    with_two = {name: full(sharded, name) for name in names}

    on_ranks[2].rollback()
    editor = editor_of(sharded, network, names, aggregate="least_squares", **options)
    again = editor.edit(requests[2])
    assert all(same_bits(full(sharded, name), with_two[name]) for name in names)
    again.rollback()
    on_one[2].rollback()
    for result in (on_one[0], on_ranks[0]):
        result.rollback()
    assert_close(sharded, plain, before, 1e-2)

    on_ranks[1].rollback()
    assert_shards(sharded, held)


def assert_close(sharded: Any, plain: Any, before: dict[str, Tensor], bound: float) -> None:
    """The changes differ by `bound` of the largest at most."""
    for name, base in before.items():
        expected = plain.get_parameter(name).detach()
        largest = (expected - base).abs().max()
        assert largest > 0
        assert (full(sharded, name) - expected).abs().max() <= bound * largest


def only_rows_travel() -> None:
    sharded, _ = editors(names=[MLP.format(5, "up"), MLP.format(5, "down")])
    sent: list[tuple[int, ...]] = []
    gather, reduce = dist.all_gather, dist.all_reduce

    def watch_gather(parts: Any, mine: Tensor, **kwargs: Any) -> Any:
        sent.append(tuple(mine.shape))
        return gather(parts, mine, **kwargs)

    def watch_reduce(tensor: Tensor, **kwargs: Any) -> Any:
        sent.append(tuple(tensor.shape))
        return reduce(tensor, **kwargs)

    result = sharded.edit(REQUEST)
    tokens = len(result.updates[MLP.format(5, "up")].request)
    result.rollback()
    with patched(dist, "all_gather", watch_gather), patched(dist, "all_reduce", watch_reduce):
        sharded.edit(REQUEST)

    votes = [shape for shape in sent if shape == (2,)]
    # δ of the colwise target and x of the rowwise one: 12 of 24 columns from each process
    assert [shape for shape in sent if shape != (2,)] == [(tokens, 12), (tokens, 12)]
    assert len(votes) <= 6


def a_plan_of_every_style_gives_the_same_edit() -> None:
    plan = {
        "model.layers.*.mlp.gate_proj": "colwise_gather_output",
        "model.layers.*.mlp.up_proj": "colwise_gather_output",
        "model.layers.*.mlp.down_proj": "rowwise_split_input",
    }
    config = DistributedConfig(tp_plan=plan, tp_size=2)
    sharded, plain = editors(UNEVEN, distributed_config=config)
    before = weights(plain.model, [target.name for target in plain.targets])
    exact = exact_sums(plain.model, plain.network, list(before))
    plain.edit(REQUESTS)
    sharded.edit(REQUESTS)
    assert_equal_sums(sharded.model, plain.model, before, exact)


def the_older_tp_plan_argument_gives_the_same_edit() -> None:
    sharded, plain = editors(tp_plan="auto")
    before = weights(plain.model, [target.name for target in plain.targets])
    plain.edit(REQUEST)
    sharded.edit(REQUEST)
    assert_equal_edits(sharded.model, plain.model, before)


def a_model_that_torch_itself_made_parallel_gives_the_same_edit() -> None:
    plain, sharded = plain_model(), made_parallel(plain_model())
    names = names_of(plain)
    network = network_of(plain, names)
    before, held = weights(plain, names), shards(sharded)

    with pytest.raises(UpdateError, match="use_local_output=True"):
        # its second run adds to outputs
        editor_of(sharded, network, names, aggregate="least_squares").edit(REQUESTS)
    assert_shards(sharded, held)

    exact = exact_sums(plain, network, names)
    editor_of(plain, network, names).edit(REQUESTS)
    result = editor_of(sharded, network, names).edit(REQUESTS)

    assert_equal_sums(sharded, plain, before, exact)
    result.rollback()
    assert_shards(sharded, held)
    targets = {HEAD: find_targets(sharded, [HEAD])[0]}
    with (
        pytest.raises(UpdateError, match="use_local_output=True"),
        attached(sharded, targets, {HEAD: result.updates[HEAD]}),
    ):
        make_batch(sharded, tokenizer_for(sharded), as_requests(REQUEST)).logits(sharded)


def tied_embeddings_follow_an_edited_head() -> None:
    plain = plain_model(tied=True)
    network = network_of(plain, [HEAD])
    sharded = load(plain)
    before, held = weights(plain, ["model.embed_tokens.weight"]), shards(sharded)
    editor_of(plain, network, [HEAD]).edit(REQUEST)
    result = editor_of(sharded, network, [HEAD]).edit(REQUEST)
    assert_equal_edits(sharded, plain, before)
    result.rollback()
    assert_shards(sharded, held)


def edits_in_a_row_and_an_undo_in_the_middle_equal_those_of_one_process() -> None:
    sharded, plain = editors(UNEVEN)
    before = weights(plain.model, [target.name for target in plain.targets])
    held = shards(sharded.model)
    requests = [REQUEST, *OBSERVED[:2]]
    results = [(sharded.edit(request), plain.edit(request)) for request in requests]
    assert_equal_edits(sharded.model, plain.model, before)

    for result in results[1]:
        result.rollback()

    assert_equal_edits(sharded.model, plain.model, before)
    assert [both[0].entry.applied for both in results] == [True, False, True]
    sharded.rollback_all()
    assert_shards(sharded.model, held)


def updates_attached_to_outputs_are_felt_and_differentiated_as_in_one_process() -> None:
    sharded, plain = editors(UNEVEN)
    result = plain.edit(REQUESTS)
    result.rollback()
    batch = make_batch(plain.model, plain.tokenizer, as_requests(REQUESTS))
    route = torch.tensor([2, 0, 1])
    for where in (None, route):
        seen = {}
        for editor in (plain, sharded):
            updates = {
                name: LowRankUpdate(
                    update.keys.clone().requires_grad_(),
                    update.values.clone().requires_grad_(),
                    update.request,
                )
                for name, update in result.updates.items()
            }
            targets = {target.name: target for target in editor.targets}
            with attached(editor.model, targets, updates, where):
                losses = batch.losses(batch.logits(editor.model))
                with torch.no_grad():
                    quietly = batch.logits(editor.model)
            rows = [row for update in updates.values() for row in (update.keys, update.values)]
            seen[editor] = (losses, quietly, torch.autograd.grad(losses.sum(), rows))
        plainly = batch.losses(batch.logits(plain.model))
        assert (seen[plain][0] - plainly).abs().max() > 1e-2
        torch.testing.assert_close(seen[sharded][0], seen[plain][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[sharded][1], seen[plain][1], rtol=1e-4, atol=1e-4)
        for ours, expected in zip(seen[sharded][2], seen[plain][2], strict=True):
            scale = float(expected.abs().max())
            assert scale > 0
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * scale)


def a_model_that_one_process_holds_alone_asks_nobody() -> None:
    plain = plain_model()
    names = names_of(plain)
    network = network_of(plain, names)
    if dist.get_rank() == 0:  # would hang if it waited for rank 1
        editor = editor_of(plain, network, names)
        editor.edit(REQUEST).rollback()


def an_edit_without_a_trained_network_takes_the_step_that_one_process_takes() -> None:
    plain = plain_model(EVEN)
    names = names_of(plain)
    sharded = load(plain)
    before, held = weights(plain, names), shards(sharded)
    hparams = toy_hparams(names, untrained=True, max_relative_norm=2.0)
    request = {"prompt": "the sun rises in the", "target_new": "Paris"}

    for target in find_targets(plain, names):
        assert weight_norm(sharded, target) == pytest.approx(weight_norm(plain, target))
    MendParallel(plain, tokenizer_for(plain), hparams).edit(request)
    result = MendParallel(sharded, tokenizer_for(sharded), hparams).edit(request)

    assert_equal_edits(sharded, plain, before)
    result.rollback()
    assert_shards(sharded, held)


def an_edit_gets_as_long_as_its_answer_takes_in_one_process() -> None:
    plain = plain_model(EVEN)
    names = names_of(plain)
    sharded = load(plain)
    before = weights(plain, names)
    hparams = toy_hparams(names, max_step=1e6, edit_lr=-1e-3, norm=False)
    network = Hypernetwork(find_targets(plain, names), hparams.network_config()).eval()
    request = {"prompt": "the sun rises in the", "target_new": "Paris"}

    for model in (plain, sharded):
        editor = MendParallel(model, tokenizer_for(model), hparams, network=network)
        assert answers(editor, request) == [False]
        editor.edit(request)
        assert answers(editor, request) == [True]

    assert_equal_edits(sharded, plain, before)


CLAIMS = (
    an_edit_equals_that_of_one_process_and_rolls_back_to_the_bit,
    so_it_does_where_the_widths_are_uneven,
    so_it_does_in_bfloat16_within_the_stated_bound,
    a_batch_that_is_solved_has_the_update_of_one_process,
    edits_solved_together_equal_those_of_one_process,
    so_do_edits_that_leave_the_text_after_their_targets,
    only_rows_travel,
    a_plan_of_every_style_gives_the_same_edit,
    the_older_tp_plan_argument_gives_the_same_edit,
    a_model_that_torch_itself_made_parallel_gives_the_same_edit,
    tied_embeddings_follow_an_edited_head,
    edits_in_a_row_and_an_undo_in_the_middle_equal_those_of_one_process,
    updates_attached_to_outputs_are_felt_and_differentiated_as_in_one_process,
    a_model_that_one_process_holds_alone_asks_nobody,
    an_edit_without_a_trained_network_takes_the_step_that_one_process_takes,
    an_edit_gets_as_long_as_its_answer_takes_in_one_process,
)
