"""A scope is trained on facts, fires no more often than stated, and lives in the archive."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scoped_toys import LINES, THREE, logits
from toys import same_bits, tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets
from typer.testing import CliRunner

from easyedit_mend_parallel import (
    ArchiveError,
    MendParallel,
    UpdateError,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.cli.app import app
from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.evaluation.data import Example, LocalityText
from easyedit_mend_parallel.files import read_tensors, write_tensors
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.archive_additions import keep_scope
from easyedit_mend_parallel.training.scope_draws import ScopeDraws
from easyedit_mend_parallel.training.scope_thresholds import (
    FALSE_FIRING,
    OTHER_RELATION,
    choose_thresholds,
    logits_of,
)
from easyedit_mend_parallel.training.scope_training import ScopeOptions, train_scope
from easyedit_mend_parallel.weights.scope import Scope, words_of
from easyedit_mend_parallel.weights.subject_words import found_subject, word_of_each_token

SUBJECTS = [
    f"{first} {last}"
    for first in ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal"]
    for last in "XY"
]
RELATIONS = ["home", "job", "pet"]
WIDTH = 24


def examples() -> list[Example]:
    """Facts whose wordings share two directions of their states: the subject's, the relation's."""
    return [
        Example(
            Request(f"{relation} of {subject}", "it", {"subject": subject}),
            (f"what {relation} has {subject}", f"{subject} and {relation}"),
            (LocalityText(f"{relation} of {SUBJECTS[number - 1]}"),) if number % 4 == 0 else (),
            subject=subject,
            relation=relation,
        )
        for number, subject in enumerate(SUBJECTS)
        for relation in RELATIONS
    ]


class Made(dict[str, torch.Tensor]):
    """States made of the text's words: each word's own direction, the text's noise on top. The last
    token's state has the directions of all words, as attention would bring them there."""

    def __missing__(self, text: str) -> torch.Tensor:
        rows = []
        for place, word in enumerate(text.split()):
            generator = torch.Generator().manual_seed(sum(map(ord, word)))
            noise = torch.Generator().manual_seed(sum(map(ord, text)) + place)
            rows.append(
                torch.randn(WIDTH, generator=generator) + 0.3 * torch.randn(WIDTH, generator=noise)
            )
        rows[-1] = torch.stack(rows).sum(0)
        self[text] = torch.stack(rows)
        return self[text]


STATES = Made()
UNRELATED = ["rain fell all day", "the shop is shut", "two birds sang", "he left the room early"]
OPTIONS = ScopeOptions(steps=240, facts=16, dimensions=12, hidden=48, unrelated=2, lr=1e-2)


def subject_tokens(text: str, subject: str) -> torch.Tensor:
    """Here a word is a token."""
    return torch.tensor([word in subject.split() for word in text.split()])


@pytest.fixture(scope="module")
def trained() -> Scope:
    found = train_scope(
        "blocks", (1, 3), examples(), UNRELATED, STATES, OPTIONS, subject_tokens=subject_tokens
    )
    rest = [e for e in examples() if e.neighbours]
    return choose_thresholds(found, rest, [], UNRELATED, STATES)


def test_a_rephrase_is_nearest_to_its_own_request_after_training(trained: Scope) -> None:
    facts = examples()
    prompts = [fact.request.prompt for fact in facts]
    found = logits_of(trained, prompts, [fact.rephrases[0] for fact in facts], STATES)
    right = (found.argmax(1) == torch.arange(len(facts))).float().mean()
    untrained = train_scope("blocks", (1, 3), facts, UNRELATED, STATES, replace(OPTIONS, steps=0))
    before = logits_of(untrained, prompts, [fact.rephrases[0] for fact in facts], STATES)
    assert right > 0.9
    assert right > (before.argmax(1) == torch.arange(len(facts))).float().mean()


def test_the_relation_head_tells_what_is_asked_of_one_subject(trained: Scope) -> None:
    facts = examples()
    prompts, texts = [f.request.prompt for f in facts], [f.rephrases[0] for f in facts]
    found = logits_of(trained, prompts, texts, STATES, named=True)
    blind = train_scope("blocks", (1, 3), facts, UNRELATED, STATES, replace(OPTIONS, steps=0))
    before = logits_of(blind, prompts, texts, STATES, named=True)
    other = torch.tensor(
        [[a.subject == b.subject and a.relation != b.relation for b in facts] for a in facts]
    )

    def told_apart(logits: torch.Tensor) -> float:
        return float((logits.diagonal()[:, None] > logits)[other].float().mean())

    assert told_apart(found) > 0.85
    assert told_apart(found) > told_apart(before)
    fires = found > trained.thresholds.subject
    assert float(fires[other].float().mean()) <= OTHER_RELATION
    assert float(fires.diagonal().float().mean()) > 0.9


def test_the_key_of_the_relation_head_is_the_prompts_last_token(trained: Scope) -> None:
    states = STATES["home of Ann X"]
    keys, weights = trained.keys(states)
    assert keys.shape == (len(states) + 1, trained.width)
    encoded = trained.encoded(states)
    assert encoded.shape == (len(states), 2 * trained.width)
    torch.testing.assert_close(keys[0], encoded[-1, trained.width :])
    torch.testing.assert_close(keys[1:], encoded[:, : trained.width])
    assert weights[0] == 0
    assert float(weights.sum()) == pytest.approx(1)
    asked = trained.relation_logits(encoded, keys[:1])[:, 0]
    assert float(asked[-1]) == pytest.approx(trained.relation_scale + trained.relation_shift)


def test_facts_without_relations_train_a_scope_without_a_relation_head() -> None:
    bare = [replace(example, relation=None) for example in examples()]
    scope = train_scope("blocks", (1, 3), bare, UNRELATED, STATES, replace(OPTIONS, steps=2))
    assert scope.relation is None
    assert scope.relation_hidden is None


def test_the_subject_head_finds_the_subject_of_facts_it_was_not_trained_on() -> None:
    facts = examples()
    known = [fact for number, fact in enumerate(facts) if number % 5]
    scope = train_scope(
        "blocks", (1, 3), known, UNRELATED, STATES, OPTIONS, subject_tokens=subject_tokens
    )
    found = []
    for fact in facts[::5]:
        for text in (fact.request.prompt, *fact.rephrases):
            read = dict(enumerate(text.split()))
            subject = found_subject(
                scope,
                STATES[text],
                list(read),
                lambda ids, read=read: " ".join(read[number] for number in ids),
            )
            found.append(subject == words_of(fact.subject or ""))
    assert sum(found) > 0.95 * len(found)


def test_without_subjects_there_is_no_subject_head_and_none_is_found(trained: Scope) -> None:
    bare = [replace(example, subject=None) for example in examples()]
    scope = train_scope(
        "blocks", (1, 3), bare, UNRELATED, STATES, replace(OPTIONS, steps=2),
        subject_tokens=subject_tokens,
    )  # fmt: skip
    assert scope.subject is None
    assert found_subject(scope, STATES["Ann X"], [0, 1], lambda _ids: "Ann X") == ()
    nowhere = replace(trained, subject_bias=-1e6)
    assert found_subject(nowhere, STATES["Ann X"], [0, 1], lambda _ids: "Ann X") == ()


def test_a_step_compares_several_questions_about_one_subject() -> None:
    facts = examples()
    of = {text: e for e in facts for text in (e.request.prompt, *e.rephrases)}
    draws = ScopeDraws(facts, UNRELATED, random.Random(3), facts=12, n_unrelated=2, rephrases=5)
    seen = 0
    for _ in range(20):
        asked = draws.relations()
        assert len(asked.texts) == len(asked.requests) + 2
        for text, same, near in zip(asked.texts, asked.same, asked.near, strict=True):
            for request, is_same, is_near in zip(asked.requests, same, near, strict=True):
                told = of.get(text)
                assert bool(is_same) == (told is not None and told.relation == of[request].relation)
                other = told is not None and told.subject == of[request].subject
                assert bool(is_near) == (other and not is_same)
                seen += bool(is_near)
    assert seen > 20


def test_one_subject_with_several_facts_is_enough_to_draw_from() -> None:
    facts = [replace(e, subject="Ann X" if n < 3 else None) for n, e in enumerate(examples())]
    draws = ScopeDraws(facts, [], random.Random(3), facts=16, n_unrelated=2, rephrases=5)
    assert draws.relations().near.any()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["The", " cap", "ital", " of", " France", "'", "s"], [0, 1, 1, 2, 3, None, 4]),
        (["", "Ann", "-", "X", "?"], [None, 0, None, 1, None]),
        (["\ufffd", "法国", "的", " GDP"], [None, 1, 2, 3]),
    ],
)
def test_each_token_is_told_the_word_it_belongs_to(
    tokens: list[str], expected: list[int | None]
) -> None:
    found = word_of_each_token(
        range(len(tokens)), lambda ids: "".join(tokens[number] for number in ids)
    )
    assert found == expected


def test_the_same_seed_trains_the_same_scope() -> None:
    options = replace(OPTIONS, steps=5)
    one, other = (
        train_scope("blocks", (1, 3), examples(), UNRELATED, STATES, options) for _ in range(2)
    )
    assert one.fingerprint() == other.fingerprint()


def test_thresholds_keep_the_stated_rate_on_the_facts_they_were_set_on(trained: Scope) -> None:
    facts = [e for e in examples() if e.neighbours]
    prompts = [fact.request.prompt for fact in facts]
    texts = [*UNRELATED, *dict.fromkeys(one.prompt for fact in facts for one in fact.neighbours)]
    found = logits_of(trained, prompts, texts, STATES)
    asked = logits_of(trained, prompts, texts, STATES, named=True)
    named = torch.tensor([[fact.subject in text for fact in facts] for text in texts])
    limits = trained.thresholds
    assert ((found > limits.alias) & ~named).any(1).float().mean() <= FALSE_FIRING
    assert ((asked > limits.subject) & named).any(1).float().mean() <= FALSE_FIRING


def test_facts_without_rephrases_or_without_negatives_are_refused() -> None:
    bare = [replace(example, rephrases=(), neighbours=()) for example in examples()]
    with pytest.raises(TrainingError, match="rephrases"):
        train_scope("blocks", (1, 3), bare, UNRELATED, STATES, OPTIONS)
    some = train_scope("blocks", (1, 3), examples(), UNRELATED, STATES, replace(OPTIONS, steps=0))
    with pytest.raises(TrainingError, match="neighbours"):
        choose_thresholds(some, bare, [], [], STATES)


def toy_scope(width: int = 32, blocks: tuple[int, ...] = (1, 3)) -> Scope:
    torch.manual_seed(0)
    return Scope(
        "model.layers",
        blocks,
        torch.zeros(width),
        torch.ones(width),
        torch.randn(12, width).half().float(),
        torch.randn(width),
        torch.zeros(()),
        20.0,
        -14.0,
        relation=torch.randn(12, 20).half().float(),
        relation_scale=12.0,
        relation_shift=-6.0,
        relation_hidden=torch.randn(20, width // len(blocks)).half().float(),
        subject=torch.randn(3 * width).half().float(),
        subject_bias=-1.5,
    )


def with_scope(folder: Path, model: Any, scope: Scope) -> Path:
    network = toy_network(model, tokenizer_for(model))
    plain = save_archive(folder / "plain.safetensors", network)
    return keep_scope(plain, scope, folder / "scoped.safetensors")


def test_an_archive_keeps_its_scope_and_its_network(tmp_path: Path) -> None:
    model, scope = toy_model("llama"), toy_scope()
    path = with_scope(tmp_path, model, scope)
    found = load_archive(path)
    assert found.scope is not None
    assert found.scope.fingerprint() == scope.fingerprint()
    assert found.scope.thresholds == scope.thresholds
    assert found.scope.subject_bias == scope.subject_bias
    for name in ("relation_hidden", "subject"):
        assert same_bits(getattr(found.scope, name), getattr(scope, name))
    plain = load_archive(tmp_path / "plain.safetensors")
    assert plain.scope is None
    assert found.state.keys() == plain.state.keys()
    assert all(same_bits(found.state[name], plain.state[name]) for name in plain.state)
    assert load_archive(path, shapes_only=True).state.keys() == plain.state.keys()
    # EasyEdit's format, too
    network = toy_network(model, tokenizer_for(model))
    theirs = save_archive(tmp_path / "archive.pt", network)
    again = load_archive(keep_scope(theirs, scope, tmp_path / "of_theirs.safetensors"))
    assert again.scope is not None
    assert all(same_bits(again.state[name], plain.state[name]) for name in plain.state)


def test_a_scope_of_an_older_archive_has_fewer_heads(tmp_path: Path) -> None:
    path = with_scope(tmp_path, toy_model("llama"), toy_scope())
    tensors, header = read_tensors(path)
    newer = ("scope.relation", "scope.relation_hidden", "scope.subject")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in newer}
    for name in ("relation_scale", "relation_shift", "subject_bias"):
        del header["scope"][name]
    old = tmp_path / "old.safetensors"
    write_tensors(old, tensors, {**header, "format_version": 2})
    found = load_archive(old).scope
    assert found is not None
    assert found.relation is None
    assert found.subject is None
    assert same_bits(found.projection, toy_scope().projection)


@pytest.mark.parametrize("name", ["relation_hidden", "subject", "relation"])
def test_heads_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    path = with_scope(tmp_path, toy_model("llama"), toy_scope())
    tensors, header = read_tensors(path)
    tensors[f"scope.{name}"] = tensors[f"scope.{name}"][:-1].contiguous()
    write_tensors(path, tensors, header)
    with pytest.raises(ArchiveError, match="damaged"):
        load_archive(path)


def test_an_editor_uses_the_scope_of_its_archive(tmp_path: Path) -> None:
    model = toy_model("llama")
    path = with_scope(tmp_path, model, toy_scope())
    hparams = toy_hparams(toy_targets(model), apply="scoped", archive=str(path))
    editor = MendParallel(model, tokenizer_for(model), hparams)
    assert editor.scoping is not None
    assert editor.scoping.scope.fingerprint() == toy_scope().fingerprint()
    plain = logits(model, THREE[0]["prompt"])
    editor.edit(THREE[0])
    assert not same_bits(logits(model, THREE[0]["prompt"]), plain)


def test_an_archive_without_a_scope_names_the_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = toy_model("llama")
    network = toy_network(model, tokenizer_for(model))
    archive = save_archive(tmp_path / "plain.safetensors", network)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(LINES))
    hparams = toy_hparams(
        toy_targets(model),
        apply="scoped",
        archive=str(archive),
        aggregate_options={"preserved_text": str(text)},
    )
    editor = MendParallel(model, tokenizer_for(model), hparams)
    assert "--scope-only" in caplog.text
    assert not editor.scoping.scope.trained


def test_a_scope_for_other_blocks_is_refused(tmp_path: Path) -> None:
    model = toy_model("llama")
    path = with_scope(tmp_path, model, toy_scope(blocks=(1, 2)))
    hparams = toy_hparams(toy_targets(model), apply="scoped", archive=str(path))
    with pytest.raises(UpdateError, match="block 2"):
        MendParallel(model, tokenizer_for(model), hparams)


def test_a_second_scope_in_one_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = toy_model("llama")
    first = with_scope(tmp_path, model, toy_scope())
    editor = MendParallel(
        model,
        tokenizer_for(model),
        toy_hparams(toy_targets(model), apply="scoped", archive=str(first)),
    )
    editor.edit(THREE[0])
    felt = logits(model, THREE[0]["prompt"])
    other = keep_scope(first, replace(toy_scope(), shift=-3.0), tmp_path / "other.safetensors")
    second = MendParallel(
        model,
        tokenizer_for(model),
        toy_hparams(toy_targets(model), apply="scoped", archive=str(other)),
    )
    with pytest.raises(UpdateError, match="another scope"):
        second.edit(THREE[1])
    assert same_bits(logits(model, THREE[0]["prompt"]), felt)


def test_a_damaged_or_newer_scope_is_refused(tmp_path: Path) -> None:
    model = toy_model("llama")
    path = with_scope(tmp_path, model, toy_scope())
    tensors, header = read_tensors(path)
    broken = tmp_path / "broken.safetensors"
    write_tensors(broken, {n: t for n, t in tensors.items() if n != "scope.weigh"}, header)
    with pytest.raises(ArchiveError, match="damaged"):
        load_archive(broken)
    write_tensors(broken, {**tensors, "scope.std": tensors["scope.std"][:3]}, header)
    with pytest.raises(ArchiveError, match="damaged"):
        load_archive(broken)
    write_tensors(broken, tensors, {**header, "format_version": 99})
    with pytest.raises(ArchiveError, match="format 99"):
        load_archive(broken)


def test_the_command_adds_a_scope_to_an_archive(tmp_path: Path) -> None:
    model = toy_model("llama")
    tokenizer = tokenizer_for(model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    network = toy_network(model, tokenizer)
    archive = save_archive(tmp_path / "plain.safetensors", network)
    records: list[dict[str, Any]] = [
        {
            "prompt": one["prompt"],
            "target_new": one["target_new"],
            "subject": one["subject"],
            "relation": "any",
            "rephrases": [f"some people say that {one['prompt']}"],
            "neighbours": [LINES[number]],
        }
        for number, one in enumerate(THREE)
    ]
    facts = tmp_path / "facts.jsonl"
    lines = [*map(json.dumps, records), *(json.dumps({"text": line}) for line in LINES)]
    facts.write_text("\n".join(lines))
    config = tmp_path / "train.json"
    fields = toy_hparams(toy_targets(model), archive=str(archive)).to_dict()
    config.write_text(json.dumps({**fields, "model_name": str(tmp_path / "model")}))
    arguments = ["train", config, "--train", facts, "--eval", facts, "--scope-only", "--json"]
    arguments += ["--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    found = load_archive(json.loads(done.stdout)["archive"])
    assert found.scope is not None
    assert found.scope.blocks == (1, 3)
