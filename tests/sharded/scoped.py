"""What is claimed of scoped edits of a tensor-parallel model: each process decides alike, and texts
feel what they feel in one process. Every process runs every claim, in the order of `CLAIMS`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scoped_toys import LINES, THREE, THRESHOLDS, base_logits, logits, parts
from sharded.models import (
    ATTENTION,
    CHECKPOINTS,
    EVEN,
    UNEVEN,
    assert_shards,
    load,
    made_parallel,
    network_of,
    plain_model,
    same_everywhere,
    shards,
)
from torch import Tensor
from torch import distributed as dist
from toys import same_bits, tokenizer_for, toy_hparams, toy_targets, toy_tokenizer
from transformers.distributed import DistributedConfig

from easyedit_mend_parallel import Journal, MendParallel, load_scoped, rollback_all, save_scoped
from easyedit_mend_parallel.method.load import Trained
from easyedit_mend_parallel.method.untrained_scope import untrained_scope
from easyedit_mend_parallel.weights.gate import Gate
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory

PROMPTS = [request["prompt"] for request in THREE]
TEXTS = [*PROMPTS, "some people say that blue", "my name is"]


def scoped_editor(model: Any, network: Any, **options: Any) -> MendParallel:
    names = [*toy_targets(model), *ATTENTION]
    hparams = toy_hparams(names, apply="scoped", **options)
    trained = Trained(copy.deepcopy(network), scope=parts("llama")[1])
    return MendParallel(model, tokenizer_for(model), hparams, network=trained)


def both(inner: int = EVEN, sharded: Any = None, **load_options: Any) -> list[MendParallel]:
    """Editors of a sharded model and of the same model in one process."""
    plain = plain_model(inner)
    network = network_of(plain, [*toy_targets(plain), *ATTENTION])
    sharded = load(plain, **load_options) if sharded is None else sharded
    return [scoped_editor(model, network) for model in (sharded, plain)]


def local_logits(model: Any, texts: Any) -> Tensor:
    found: Any = logits(model, texts)
    whole: Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
    return whole


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-3 * other.abs().max())


def decisions(model: Any, texts: list[str]) -> list[list[str | None]]:
    """Whose update each position feels, as the gate says while the model runs."""
    seen: list[list[str | None]] = []

    def look(*_: Any) -> None:
        fired = Gate.of(model).decision.requests or [[None]]
        seen.extend([one and one.prompt for one in row] for row in fired)

    handle = model.model.layers[3].mlp.register_forward_pre_hook(look)
    try:
        logits(model, texts)
    finally:
        handle.remove()
    return seen


def assert_equal(sharded: Any, plain: Any) -> None:
    fired, base = local_logits(sharded, TEXTS), base_logits(sharded, TEXTS)
    assert close(fired, local_logits(plain, TEXTS))
    assert same_everywhere(fired)
    for number, text in enumerate(TEXTS):
        assert same_bits(fired[number], base[number]) == (text not in PROMPTS)
    decided = decisions(sharded, TEXTS)
    assert decided == decisions(plain, TEXTS)
    others: list[Any] = [None, None]
    dist.all_gather_object(others, decided)
    assert others[0] == others[1]


def _feels(inner: int = EVEN, sharded: Any = None, **load_options: Any) -> None:
    on_ranks, on_one = both(inner, sharded, **load_options)
    held = shards(on_ranks.model)
    results = [(on_ranks.edit(one), on_one.edit(one)) for one in (THREE[0], THREE[1:])]
    assert_equal(on_ranks.model, on_one.model)
    for name, update in results[0][0].updates.items():
        assert same_everywhere(update.keys), name
        assert same_everywhere(update.values), name
    assert_shards(on_ranks.model, held)
    for result in results[0]:
        result.rollback()
    assert close(local_logits(on_ranks.model, TEXTS), local_logits(on_one.model, TEXTS))
    rollback_all(on_ranks.model)
    assert scoped_memory(on_ranks.model) is None
    assert_shards(on_ranks.model, held)


def scoped_edits_are_felt_as_in_one_process() -> None:
    _feels()


def so_they_are_where_the_widths_are_uneven() -> None:
    _feels(UNEVEN)


def so_they_are_by_a_plan_of_every_style() -> None:
    plan = {
        "model.layers.*.mlp.gate_proj": "colwise_gather_output",
        "model.layers.*.mlp.up_proj": "colwise_gather_output",
        "model.layers.*.mlp.down_proj": "rowwise_split_input",
    }
    _feels(UNEVEN, distributed_config=DistributedConfig(tp_plan=plan, tp_size=2))


def so_they_are_where_torch_itself_split_the_model() -> None:
    on_ranks, on_one = both(sharded=made_parallel(plain_model()))
    for editor in (on_ranks, on_one):
        editor.edit(THREE)
    assert decisions(on_ranks.model, TEXTS) == decisions(on_one.model, TEXTS)
    # the output of the head is a DTensor here, which `logits` leaves split
    assert close(local_logits(on_ranks.model, TEXTS), local_logits(on_one.model, TEXTS))


def generation_is_that_of_one_process_with_a_cache_and_without() -> None:
    on_ranks, on_one = both()
    encoded = toy_tokenizer(side="left")(TEXTS, return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    plain = on_ranks.model.generate(**encoded, **options)
    for editor in (on_ranks, on_one):
        editor.edit(THREE)
    for use_cache in (True, False):
        made, expected = (
            editor.model.generate(**encoded, **options, use_cache=use_cache)
            for editor in (on_ranks, on_one)
        )
        assert torch.equal(made, expected)
        assert not torch.equal(made, plain)


def a_scope_without_training_is_the_same_on_each_process() -> None:
    on_ranks, _ = both()
    model = on_ranks.model
    scope = untrained_scope(model, tokenizer_for(model), on_ranks.targets, LINES)
    assert same_everywhere(scope.projection)
    assert scope.thresholds != THRESHOLDS


def a_folder_goes_from_one_process_to_several_and_back() -> None:
    on_ranks, on_one = both()
    for editor in (on_ranks, on_one):
        editor.edit(THREE)
    folders = [CHECKPOINTS / "scoped-ranks", CHECKPOINTS / f"scoped-one-{dist.get_rank()}"]
    fired = [local_logits(editor.model, TEXTS) for editor in (on_ranks, on_one)]
    save_scoped(on_ranks.model, folders[0])
    save_scoped(on_one.model, folders[1])
    for editor in (on_ranks, on_one):
        for folder, expected in zip(folders, fired, strict=True):
            rollback_all(editor.model)
            edits = load_scoped(folder, editor.model, editor.tokenizer)
            assert close(local_logits(editor.model, TEXTS), expected)
            edits[0].rollback()
            assert scoped_memory(editor.model) is None
    load_scoped(folders[0], on_ranks.model, on_ranks.tokenizer)
    assert same_bits(local_logits(on_ranks.model, TEXTS), fired[0])


def a_journal_of_scoped_edits_is_that_of_one_process() -> None:
    on_ranks, on_one = both()
    folder = CHECKPOINTS / "scoped-journal"
    journal = Journal(folder).apply_to(on_ranks.model, apply="scoped", scoping=on_ranks.scoping)
    journal.add(on_ranks.edit(THREE))
    fired = local_logits(on_ranks.model, TEXTS)
    assert journal.edit(1).about["scope"]["below"]
    Journal(folder).apply_to(on_one.model, apply="scoped", scoping=on_one.scoping)
    assert close(local_logits(on_one.model, TEXTS), fired)


def rows_in_files_are_felt_by_every_process() -> None:
    on_ranks, on_one = both()
    network = on_ranks.network
    keys = 0
    for editor in (on_ranks, on_one):
        editor.edit(THREE[:2])
        keys = scoped_memory(editor.model).key_bytes
        more = scoped_editor(editor.model, network, scope_memory=2 * keys)
        more.edit(THREE[2])
        assert scoped_memory(editor.model).kept.bytes_in_files > 0
    assert_equal(on_ranks.model, on_one.model)
    with pytest.raises(Exception, match="keys"):
        scoped_editor(on_ranks.model, network, scope_memory=keys).edit(
            {"prompt": "my name is", "target_new": "Oslo"}
        )


CLAIMS = (
    scoped_edits_are_felt_as_in_one_process,
    so_they_are_where_the_widths_are_uneven,
    so_they_are_by_a_plan_of_every_style,
    so_they_are_where_torch_itself_split_the_model,
    generation_is_that_of_one_process_with_a_cache_and_without,
    a_scope_without_training_is_the_same_on_each_process,
    a_folder_goes_from_one_process_to_several_and_back,
    a_journal_of_scoped_edits_is_that_of_one_process,
    rows_in_files_are_felt_by_every_process,
)
