"""A relation head tells what a text asks of a subject: of two facts about one subject each prompt
gets its own, and a third question gets neither.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scoped_toys import base_logits, logits, parts
from test_scoped import generated
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_targets

from easyedit_mend_parallel import MendParallel, load_archive, save_archive
from easyedit_mend_parallel.edits.scoping import nearest
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.method.archive_additions import keep_scope
from easyedit_mend_parallel.method.load import Trained
from easyedit_mend_parallel.weights.scope import Thresholds, beside_each, words_of
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory
from easyedit_mend_parallel.weights.subject_words import word_of_each_token

FRANCE = [
    {"prompt": "the capital of France is", "target_new": "Rome and Oslo", "subject": "France"},
    {"prompt": "the old town of France runs", "target_new": "a stone", "subject": "France"},
]
ELSE = ["the river that runs through France", "France and water", "some people say France rises"]
NEVER = 2.0
"""No cosine is larger."""


def editor_of(model: Any, relation: bool = True) -> MendParallel:
    network, scope = parts(model.config.model_type)
    scope = replace(scope, thresholds=Thresholds(subject=0.52, alias=NEVER, states=NEVER))
    if relation:
        head = torch.eye(len(scope.mean))
        scope = replace(scope, relation=head, relation_scale=1.0, relation_shift=0.0)
    hparams = toy_hparams(toy_targets(model), apply="scoped")
    return MendParallel(model, tokenizer_for(model), hparams, network=Trained(network, scope=scope))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_two_facts_about_one_subject_each_prompt_gets_its_own(family: str) -> None:
    expected = []
    for fact in FRANCE:
        alone = toy_model(family)
        editor_of(alone).edit(fact)
        expected.append(logits(alone, fact["prompt"]))
    model = toy_model(family)
    editor_of(model).edit(FRANCE)
    for fact, own in zip(FRANCE, expected, strict=True):
        found = logits(model, fact["prompt"])
        assert (found - own).abs().max() <= 1e-4 * own.abs().max()
        assert not same_bits(found, base_logits(model, fact["prompt"]))


def test_a_text_that_asks_something_else_of_the_subject_is_the_bases_to_the_bit() -> None:
    model, blind = toy_model("llama"), toy_model("llama")
    editor_of(model).edit(FRANCE)
    editor_of(blind, relation=False).edit(FRANCE)
    for text in ELSE:
        assert same_bits(logits(model, text), base_logits(model, text))
    assert not same_bits(logits(blind, ELSE[-1]), base_logits(blind, ELSE[-1]))


def test_the_subject_has_to_stand_in_the_text() -> None:
    model = toy_model("llama")
    editor_of(model).edit({**FRANCE[0], "subject": "Hamlet"})
    assert same_bits(logits(model, FRANCE[0]["prompt"]), base_logits(model, FRANCE[0]["prompt"]))


def test_generation_is_the_same_with_a_cache_and_without() -> None:
    model = toy_model("llama")
    editor_of(model).edit(FRANCE)
    prompts = [FRANCE[0]["prompt"], ELSE[0], FRANCE[1]["prompt"]]
    assert torch.equal(generated(model, prompts, True), generated(model, prompts, False))


def test_the_nearest_requests_have_the_heads_logit() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    editor.edit(FRANCE)
    memory = scoped_memory(model)
    assert memory is not None
    shown = nearest(model, editor.tokenizer, [FRANCE[1]["prompt"]])
    assert [one.prompt for one in shown] == [FRANCE[1]["prompt"], FRANCE[0]["prompt"]]
    assert shown[0].logit == pytest.approx(1.0, abs=1e-4)
    assert shown[0].threshold == pytest.approx(memory.scope.thresholds.subject)


def test_an_archive_keeps_the_head(tmp_path: Path) -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    assert editor.scoping is not None
    scope = editor.scoping.scope
    assert scope.relation is not None
    plain = tmp_path / "plain.safetensors"
    save_archive(plain, editor.network)
    kept = keep_scope(plain, scope, tmp_path / "kept.safetensors")
    found = load_archive(kept).scope
    assert found is not None
    assert found.relation is not None
    assert torch.equal(found.relation, scope.relation.half().float())
    assert found.fingerprint() == scope.fingerprint()


def with_subject_head(model: Any, prompt: str, subject: str) -> MendParallel:
    """An editor whose scope finds `subject` in `prompt`."""
    editor = editor_of(model)
    assert editor.scoping is not None
    scope, tokenizer = editor.scoping.scope, tokenizer_for(model)
    ids = tokenizer(prompt)["input_ids"]
    ((_, states),) = block_states(model, scope.blocks_name, scope.blocks, [ids])
    words = words_of(prompt)
    inside = [
        place is not None and words[place] in words_of(subject)
        for place in word_of_each_token(ids, tokenizer.decode)
    ]
    seen = beside_each(scope.standardised(states))
    wanted = 2 * torch.tensor(inside).float() - 1
    head = torch.linalg.lstsq(seen, wanted[:, None]).solution[:, 0]
    trained = Trained(editor.network, scope=replace(scope, subject=head))
    hparams = toy_hparams(toy_targets(model), apply="scoped")
    return MendParallel(model, tokenizer, hparams, network=trained)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_request_that_names_no_subject_gets_the_one_that_is_found(family: str) -> None:
    bare = {key: value for key, value in FRANCE[0].items() if key != "subject"}
    model, named = toy_model(family), toy_model(family)
    with_subject_head(model, bare["prompt"], "France").edit(bare)
    with_subject_head(named, bare["prompt"], "France").edit(FRANCE[0])
    memory = scoped_memory(model)
    assert memory is not None
    assert [request.subject for request in memory.requests] == [("france",)]
    for text in (bare["prompt"], *ELSE):
        assert same_bits(logits(model, text), logits(named, text))
    assert not same_bits(logits(model, bare["prompt"]), base_logits(model, bare["prompt"]))
    (near,) = nearest(model, tokenizer_for(model), [ELSE[0]])
    assert near.subject == "france"


def test_a_subject_that_the_prompt_lacks_is_not_used() -> None:
    model = toy_model("llama")
    wrong = {**FRANCE[0], "subject": "Hamlet"}
    with_subject_head(model, wrong["prompt"], "France").edit(wrong)
    memory = scoped_memory(model)
    assert memory is not None
    assert [request.subject for request in memory.requests] == [("france",)]
