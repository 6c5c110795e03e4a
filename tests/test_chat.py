"""Claims about chat form: which tokens are labels, in edits and in training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import REQUEST, toy_hparams, toy_model, toy_network, toy_targets, toy_tokenizer
from trained.runs import UNRELATED, data, facts, trainer

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.errors import HparamsError, RequestError
from easyedit_mend_parallel.evaluation.data import LocalityText
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.chat import chat_request, end_of_turn, in_chat
from easyedit_mend_parallel.forward.requests import Request, as_requests
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.forward.tokenizing import tokenized
from easyedit_mend_parallel.training.continuations import Continuations

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}who {{ m.content }} {% else %}"
    "is {{ m.content }} </s> {% endif %}{% endfor %}{% if add_generation_prompt %}is {% endif %}"
)


def chat_tokenizer(**options: Any) -> Any:
    tokenizer = toy_tokenizer(**options)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_labels_in_chat_form_are_the_answer_and_the_end_of_the_turn_alone(bos: bool) -> None:
    model, tokenizer = toy_model("llama"), chat_tokenizer(bos=bos)
    request = chat_request(tokenizer, Request("the capital of France", " Rome and Oslo"))
    found = tokenized(
        model, tokenizer, request.prompt, request.target_text, request.target_space or ""
    )
    words = tokenizer.convert_ids_to_tokens(list(found.ids))

    assert words[bos:] == [
        "who",
        "the",
        "capital",
        "of",
        "France",
        "is",
        "Rome",
        "and",
        "Oslo",
        "</s>",
    ]
    assert tokenizer.convert_ids_to_tokens(list(found.labels)) == ["Rome", "and", "Oslo", "</s>"]


def test_the_end_of_a_turn_is_the_first_special_token_after_an_answer() -> None:
    tokenizer = chat_tokenizer()
    assert end_of_turn(tokenizer) == " </s>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == ""


def test_a_token_that_the_tokenizer_itself_puts_before_a_text_stands_there_once() -> None:
    tokenizer = chat_tokenizer(bos=True)
    tokenizer.chat_template = "<s> " + TEMPLATE
    assert tokenizer(in_chat(tokenizer, "Hamlet"))["input_ids"].count(1) == 1


def test_an_edit_in_chat_form_is_the_edit_of_the_templates_text() -> None:
    model, tokenizer = toy_model("llama"), chat_tokenizer()
    network = toy_network(model, tokenizer)

    def update(requests: Any, **options: Any) -> Any:
        hparams = toy_hparams(toy_targets(model), **options)
        result = MendParallel(model, tokenizer, hparams, network=network).edit(requests)
        result.rollback()
        return result

    chat = update(REQUEST, chat=True)
    written = update(chat_request(tokenizer, as_requests(REQUEST)[0]))
    plain = update(REQUEST)

    assert [one.prompt for one in chat.requests] == [REQUEST["prompt"]]
    for name, one in chat.updates.items():
        assert torch.equal(one.keys, written.updates[name].keys)
        assert torch.equal(one.values, written.updates[name].values)
        assert one.keys.shape != plain.updates[name].keys.shape


def test_a_tokenizer_without_a_template_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    hparams = toy_hparams(toy_targets(model), chat=True)
    editor = MendParallel(model, tokenizer, hparams, network=toy_network(model, tokenizer))
    with pytest.raises(RequestError, match="no chat template"):
        editor.edit(REQUEST)
    with pytest.raises(RequestError, match="no chat template"):
        trainer(tmp_path, chat=True)
    with pytest.raises(HparamsError, match="chat_share is 0"):
        trainer(tmp_path, chat=True, chat_share=0.0)


def test_a_share_of_the_training_facts_is_in_chat_form_and_the_rest_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trained.runs.toy_tokenizer", chat_tokenizer)
    held = (LocalityText("the old town is"),)
    of = data(validation=facts("new", neighbours=held, rephrases=("Oslo is",)))
    run = trainer(tmp_path, of=of, chat=True, chat_share=0.5, continuation_positions=2)
    run.run()

    chat = [e for e in run.data.train if e.request.prompt.startswith("who ")]
    assert 0 < len(chat) < len(run.data.train)
    assert all(e.rephrases[0].startswith("who ") for e in chat)
    assert {e.split for e in run.data.validation} == {"new", "new, chat"}
    judged = next(e for e in run.data.validation if e.split == "new, chat")
    assert judged.neighbours[0].prompt == "who the old town is is "
    assert list(run.data.unrelated) == list(UNRELATED)
    assert run.continued  # of plain answers alone: one in chat form says where it ends
    assert all(not text.prompt.startswith("who ") for text in run.continued)


def test_an_answer_that_ends_its_turn_has_no_continuation() -> None:
    texts = Texts(toy_model("llama"), chat_tokenizer())
    drawn = Continuations(texts, seed=1)
    list(drawn.draw({Text("who Hamlet is ", "Rome </s>"): True, Text("my cat", " sat"): True}))
    assert list(drawn.of) == [Text("my cat", " sat")]


def test_labels_of_plain_requests_stay_what_they_were_beside_a_template() -> None:
    model = toy_model("llama")
    with_template, without = (
        make_batch(model, tokenizer, as_requests(REQUEST))
        for tokenizer in (chat_tokenizer(), toy_tokenizer())
    )
    assert torch.equal(with_template.labels, without.labels)
