"""A scoped edit changes texts about its fact and no other, to the bit; comes out alone and
exactly; and gives the same with a cache and without."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from scoped_toys import THREE, base_logits, editor_of, logits, parts
from toys import (
    assert_unchanged,
    same_bits,
    some_updates,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import MendParallel, TargetError, UpdateError, rollback_all
from easyedit_mend_parallel.errors import NoTrunkError
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.text_batch import make_text_batch
from easyedit_mend_parallel.method.load import Trained
from easyedit_mend_parallel.weights import key_table
from easyedit_mend_parallel.weights.gate import Gate
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.scope import Thresholds
from easyedit_mend_parallel.weights.stores.scoped import ScopedStaged, scoped_memory
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

PROMPTS = [request["prompt"] for request in THREE]
OTHERS = [
    "my name is",
    "some people say that blue",
    "water boils at one hundred degrees in the sun",
]
FAMILIES = ["llama", "gpt2", "gptj"]
LOW = Thresholds(subject=0.3, alias=0.97, states=0.9)


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def generated(model: Any, prompts: list[str], use_cache: bool, **options: Any) -> torch.Tensor:
    tokenizer = toy_tokenizer(side="left")
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    found: torch.Tensor = model.generate(
        **encoded,
        max_new_tokens=8,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=None,
        **options,
    )
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_prompt_feels_an_edit_and_other_text_is_the_bases_to_the_bit(family: str) -> None:
    model = toy_model(family)
    before = weights(model)
    plain = {text: logits(model, text) for text in (*PROMPTS, *OTHERS)}
    result = editor_of(model).edit(THREE)
    for number, prompt in enumerate(PROMPTS):
        mine = {
            name: LowRankUpdate(u.keys.float(), u.values.float(), u.request)
            for name, u in result.updates.items()
        }
        targets = {target.name: target for target in find_targets(model, toy_targets(model))}
        with Gate.of(model).silent(), attached(model, targets, mine, torch.tensor([number])):
            expected = logits(model, prompt)
        felt = logits(model, prompt)
        assert (felt - plain[prompt]).abs().max() > 1e-2 * plain[prompt].abs().max()
        assert (felt - expected).abs().max() <= 1e-5 * expected.abs().max()
    for text in OTHERS:
        assert same_bits(logits(model, text), plain[text])
    assert_unchanged(model, before)


def test_its_answer_is_as_likely_as_with_all_rows_in_full_precision() -> None:
    model, twin = toy_model("llama"), toy_model("llama")
    scoped = editor_of(model).edit(THREE[0], losses_after=True)
    network, _ = parts("llama")
    hparams = toy_hparams(toy_targets(twin))
    plain = MendParallel(twin, tokenizer_for(twin), hparams, network=network)
    written = plain.edit(THREE[0], losses_after=True)
    assert scoped.losses == written.losses
    assert scoped.losses_after == pytest.approx(written.losses_after, abs=0.06)
    assert scoped.losses_after[0] != pytest.approx(scoped.losses[0], abs=0.1)
    rows = {name: len(update.keys) for name, update in scoped.updates.items()}
    assert all(rows[name] < len(written.updates[name].keys) for name in rows)
    assert all(update.keys.dtype == torch.float16 for update in scoped.updates.values())


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_decides_for_each_sequence_by_itself(side: str) -> None:
    model = toy_model("llama")
    tokenizer = toy_tokenizer(side=side)
    editor_of(model).edit(THREE)
    texts = [PROMPTS[2], OTHERS[0], PROMPTS[0], OTHERS[2]]
    together, base = logits(model, texts, tokenizer), base_logits(model, texts, tokenizer)
    for row, text in enumerate(texts):
        alone = logits(model, text, tokenizer)[0]
        mine = together[row, -len(alone) :] if side == "left" else together[row, : len(alone)]
        assert (mine - alone).abs().max() <= 1e-4 * alone.abs().max()
        assert same_bits(together[row], base[row]) == (text in OTHERS)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:5:2])
def test_any_edit_comes_out_and_leaves_the_others_to_the_bit(order: tuple[int, ...]) -> None:
    model = toy_model("llama")
    plain, hooked = logits(model, PROMPTS), hooks(model)
    editor = editor_of(model)
    results = [editor.edit(request) for request in THREE]
    felt = [logits(model, prompt) for prompt in PROMPTS]
    left = {0, 1, 2}
    for number in order:
        results[number].rollback()
        left.discard(number)
        for other, prompt in enumerate(PROMPTS):
            now = logits(model, prompt)
            expected = felt[other] if other in left else base_logits(model, prompt)
            assert same_bits(now, expected)
    assert same_bits(logits(model, PROMPTS), plain)
    assert hooks(model) == hooked
    assert scoped_memory(model) is None


def test_an_edit_is_made_on_the_base_whatever_is_in_the_memory() -> None:
    model, fresh = toy_model("llama"), toy_model("llama")
    editor_of(model).edit({**THREE[0], "target_new": "the sea"})
    later = editor_of(model).edit(THREE[0])
    alone = editor_of(fresh).edit(THREE[0])
    assert later.losses == alone.losses
    for name, update in alone.updates.items():
        assert same_bits(later.updates[name].keys, update.keys)


def test_the_same_prompt_again_replaces_and_undone_brings_the_first_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    editor.edit(THREE[0])
    first = logits(model, PROMPTS[0])
    caplog.set_level(logging.WARNING)
    again = editor.edit({**THREE[0], "target_new": "the sea"})
    assert "contradicts" in caplog.text
    assert "Rome and Oslo" in caplog.text
    assert not same_bits(logits(model, PROMPTS[0]), first)
    alone = toy_model("llama")
    editor_of(alone).edit({**THREE[0], "target_new": "the sea"})
    assert same_bits(logits(model, PROMPTS[0]), logits(alone, PROMPTS[0]))
    again.rollback()
    assert same_bits(logits(model, PROMPTS[0]), first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_gives_the_same_with_a_cache_and_without(
    family: str, options: dict[str, Any]
) -> None:
    model = toy_model(family)
    plain = generated(model, [*PROMPTS, OTHERS[0]], True, **options)
    editor_of(model).edit(THREE)
    with_cache = generated(model, [*PROMPTS, OTHERS[0]], True, **options)
    without = generated(model, [*PROMPTS, OTHERS[0]], False, **options)
    assert torch.equal(with_cache, without)
    assert not torch.equal(with_cache, plain)


def test_an_update_acts_until_its_answer_is_given_and_not_after() -> None:
    model = toy_model("llama")
    editor_of(model).edit(THREE)
    memory, tokenizer = scoped_memory(model), tokenizer_for(model)
    text = "the capital of France is Rome and Oslo by the sea"
    felt = _felt(model, tokenizer, text)
    assert [one is not None for one in felt] == [True] * 7 + [False] * 4
    assert {one.prompt for one in felt if one} == {PROMPTS[0]}
    assert len(memory) == 3


def test_what_comes_after_an_answer_is_looked_at_anew() -> None:
    model = toy_model("llama")
    editor_of(model, thresholds=Thresholds(0.3, 0.97, 0.9)).edit(THREE)
    felt = _felt(model, tokenizer_for(model), f"{PROMPTS[0]} Rome and Oslo {PROMPTS[1]}")
    assert {one.prompt for one in felt[:7]} == {PROMPTS[0]}
    assert [one and one.prompt for one in felt[-1:]] == [PROMPTS[1]]
    assert felt[7] is None


def test_each_of_several_facts_in_a_text_is_felt_from_where_it_fires() -> None:
    model = toy_model("llama")
    editor_of(model, thresholds=LOW).edit(THREE)
    tokenizer = tokenizer_for(model)
    text = f"{PROMPTS[0]} red and {PROMPTS[1]} and {PROMPTS[2]}"
    felt = [one and one.prompt for one in _felt(model, tokenizer, text)]
    words = text.split()
    second, third = words.index("Hamlet"), words.index("town")
    assert felt[:second] == PROMPTS[:1] * second
    assert felt[second:third] == PROMPTS[1:2] * (third - second)
    assert felt[third:] == PROMPTS[2:] * (len(words) - third)


def test_a_later_fact_changes_no_earlier_token() -> None:
    model = toy_model("llama")
    editor_of(model, thresholds=LOW).edit(THREE)
    text = f"{PROMPTS[0]} red and {PROMPTS[1]}"
    beginning = text.rpartition(" ")[0]
    both, first = logits(model, text)[0], logits(model, beginning)[0]
    length = len(beginning.split())
    assert (both[:length] - first).abs().max() <= 1e-5 * first.abs().max()
    alone = toy_model("llama")
    editor_of(alone, thresholds=LOW).edit(THREE[0])
    assert (both[length:] - logits(alone, text)[0, length:]).abs().max() > 1e-2


def test_a_fact_about_what_an_answer_names_does_not_cut_the_answer_short() -> None:
    model = toy_model("llama")
    about = {"prompt": "the town of Rome stands by", "target_new": "the sea", "subject": "Rome"}
    editor_of(model, thresholds=Thresholds(-1.0, 0.97, 0.9)).edit([THREE[0], about])
    tokenizer = tokenizer_for(model)
    for given in ("Rome", "Rome and", "Rome and Oslo"):
        felt = _felt(model, tokenizer, f"{PROMPTS[0]} {given}")
        kept = 5 + len(given.split()) - (given == "Rome and Oslo")
        assert {one and one.prompt for one in felt[:kept]} == {PROMPTS[0]}
    felt = _felt(model, tokenizer, f"{PROMPTS[0]} red Rome by")
    assert [one.prompt for one in felt[-3:]] == [PROMPTS[0], about["prompt"], about["prompt"]]


CACHES: dict[str, dict[str, Any]] = {
    "none": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"use_cache": True, "cache_implementation": "static"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_after_several_facts_is_the_same_with_any_cache(family: str) -> None:
    model = toy_model(family)
    prompts = [f"{PROMPTS[0]} red and {PROMPTS[1]}", PROMPTS[2], "my name is", PROMPTS[1]]
    plain = generated(model, prompts, True)
    editor_of(model, thresholds=Thresholds(0.3, 0.99, 0.99)).edit(THREE)
    made = {name: generated(model, prompts, **options) for name, options in CACHES.items()}
    assert not torch.equal(made["none"], plain)
    assert torch.equal(made["dynamic"], made["none"])
    assert torch.equal(made["static"], made["none"])


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_padding_is_not_read_whichever_cache_a_text_has(family: str) -> None:
    model = toy_model(family)
    if family != "mistral":
        editor_of(model).edit(THREE)
    else:
        network, scope = parts("llama")
        hparams = toy_hparams(toy_targets(model), apply="scoped")
        trained = Trained(network, scope=scope)
        MendParallel(model, tokenizer_for(model), hparams, network=trained).edit(THREE)
    read: dict[str, list[torch.Tensor]] = {name: [] for name in CACHES}
    gate = Gate.of(model)
    look_up = gate.memory.look_up
    for name, options in CACHES.items():

        def look(states: Any, real: Any, *rest: Any, name: str = name) -> Any:
            read[name].append(real)
            return look_up(states, real, *rest)

        gate.memory.look_up = look
        generated(model, [PROMPTS[0], "my name is"], **options)
    assert not read["none"][0].all()
    for static, dynamic in zip(read["static"], read["dynamic"], strict=True):
        assert torch.equal(static, dynamic)


def test_what_was_read_goes_on_with_the_cache_in_parts_of_any_length() -> None:
    model = toy_model("llama")
    editor_of(model).edit(THREE)
    tokenizer = tokenizer_for(model)
    ids = tokenizer(f"some people say that {PROMPTS[0]} Rome", return_tensors="pt")["input_ids"]
    whole = _felt_ids(model, ids)
    for cut in (1, 4, 8, ids.shape[1] - 1):
        with torch.no_grad():
            cache = model(ids[:, :cut], use_cache=True).past_key_values
            seen = _last_felt(model, ids[:, cut:], past_key_values=cache, use_cache=True)
        assert [one is not None for one in seen[-1:]] == [one is not None for one in whole[-1:]]
        assert seen[-1] is whole[-1] is not None


def test_a_text_whose_beginning_is_in_no_cache_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = toy_model("llama")
    editor_of(model).edit(THREE)
    generated(model, PROMPTS, True)
    assert not caplog.records
    ids = torch.tensor([[4, 5]])
    for _ in range(2):
        with torch.no_grad():
            model(ids, attention_mask=torch.ones(1, 7, dtype=torch.long))
    [said] = caplog.messages
    assert "after 5 tokens that are in no cache" in said


def test_a_request_that_names_its_subject_fires_lower_where_the_text_has_it() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    with_subject = editor.edit(THREE[0])
    rephrase = "some people say that the capital of France is"
    assert not same_bits(logits(model, rephrase), base_logits(model, rephrase))
    other = "some people say that the capital of Hamlet is"
    assert same_bits(logits(model, other), base_logits(model, other))
    with_subject.rollback()
    plain = {name: THREE[0][name] for name in ("prompt", "target_new")}
    editor.edit(plain)
    assert scoped_memory(model).requests[0].subject == ()


def test_the_look_up_in_parts_is_the_look_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("llama")
    editor_of(model).edit(THREE)
    texts = [*PROMPTS, *OTHERS]
    at_once = logits(model, texts)
    monkeypatch.setattr(key_table, "AT_ONCE", 1)
    assert same_bits(logits(model, texts), at_once)


def test_a_deep_copy_has_the_edits_made_until_then() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    editor.edit(THREE[0])
    twin = copy.deepcopy(model)
    felt = logits(model, PROMPTS[0])
    editor.edit(THREE[1])
    assert same_bits(logits(twin, PROMPTS[0]), felt)
    assert same_bits(logits(twin, PROMPTS[1]), base_logits(model, PROMPTS[1]))
    assert not same_bits(logits(model, PROMPTS[1]), base_logits(model, PROMPTS[1]))


@pytest.mark.parametrize("k", [0, 4, 8])
@pytest.mark.parametrize("after", [False, True])
def test_an_edit_that_breaks_off_leaves_nothing(
    k: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    editor.edit(THREE[0])
    before, hooked = logits(model, PROMPTS), hooks(model)
    calls, commit = itertools.count(), ScopedStaged.commit

    def broken(staged: ScopedStaged) -> None:
        mine = next(calls) == k
        if after or not mine:
            commit(staged)
        if mine:
            raise KeyboardInterrupt("broken on purpose")

    monkeypatch.setattr(ScopedStaged, "commit", broken)
    with pytest.raises(KeyboardInterrupt):
        editor.edit(THREE[1:])
    assert same_bits(logits(model, PROMPTS), before)
    assert hooks(model) == hooked
    assert len(scoped_memory(model)) == 1


@pytest.mark.parametrize("kept", ["ram", "disk"])
def test_an_offloaded_model_decides_and_feels_as_a_resident_one(kept: str, tmp_path: Path) -> None:
    model, plain = toy_model("llama"), toy_model("llama")
    if kept == "ram":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    for one in (model, plain):
        editor_of(one).edit(THREE)
    texts = [*PROMPTS, *OTHERS]
    assert same_bits(logits(model, texts), logits(plain, texts))
    rollback_all(model)
    assert same_bits(logits(model, texts), base_logits(plain, texts))


def test_rollback_all_takes_out_what_nobody_holds() -> None:
    model = toy_model("llama")
    plain, editor = logits(model, PROMPTS), editor_of(model)
    for request in THREE:
        editor.edit(request)
    gc.collect()
    assert len(scoped_memory(model)) == 3
    rollback_all(model)
    assert scoped_memory(model) is None
    assert same_bits(logits(model, PROMPTS), plain)


def test_a_deleted_model_is_freed() -> None:
    model = toy_model("llama")
    result = editor_of(model).edit(THREE[0])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not result.entry.applied


def test_a_forward_that_begins_in_the_middle_is_refused() -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    trunk = CachedTrunk(model, targets)
    editor_of(model).edit(THREE[0])
    batch = make_text_batch(model, tokenizer_for(model), PROMPTS)
    with pytest.raises(NoTrunkError, match="scoped"):
        trunk.resume(model, batch)


def test_targets_in_block_0_and_encoder_decoders_are_refused_with_the_reason() -> None:
    model = toy_model("llama")
    names = ["model.layers.0.mlp.up_proj.weight"]
    network = toy_network(model, tokenizer_for(model), names)
    with pytest.raises(TargetError, match="block 0"):
        MendParallel(
            model, tokenizer_for(model), toy_hparams(names, apply="scoped"), network=network
        )
    t5 = toy_model("t5")
    with pytest.raises(TargetError, match="decoder"):
        MendParallel(
            t5,
            tokenizer_for(t5),
            toy_hparams(toy_targets(t5), apply="scoped"),
            network=toy_network(t5, tokenizer_for(t5)),
        )


def test_rows_that_do_not_say_where_they_apply_are_refused() -> None:
    model = toy_model("llama")
    targets = find_targets(model, toy_targets(model))
    with pytest.raises(UpdateError, match="does not say where"):
        Ledger.of(model).change(targets, some_updates(targets, 0), "scoped")
    assert Ledger.of(model).is_empty


def _felt(model: Any, tokenizer: Any, text: str) -> list[Any]:
    return _felt_ids(model, tokenizer(text, return_tensors="pt")["input_ids"])


def _felt_ids(model: Any, ids: torch.Tensor) -> list[Any]:
    with torch.no_grad():
        return _last_felt(model, ids)


def _last_felt(model: Any, ids: torch.Tensor, **options: Any) -> list[Any]:
    """The request whose update applies at each position of one sequence, by the gate."""
    seen: list[Any] = []
    lowest = model.model.layers[3].mlp

    def look(*_: Any) -> None:
        decision = Gate.of(model).decision
        seen.extend(decision.requests[0] if decision.requests else [None] * ids.shape[1])

    handle = lowest.register_forward_pre_hook(look)
    try:
        model(ids, **options)
    finally:
        handle.remove()
    return seen
