"""Claims about what stands between a prompt and its target, and about which tokens are labels."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from toys import NETWORK_FIELDS, REQUESTS, byte_level_tokenizer, toy_model, toy_tokenizer

from easyedit_mend_parallel import MENDParallelHyperParams
from easyedit_mend_parallel.errors import HparamsError, RequestError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import Request, as_requests
from easyedit_mend_parallel.forward.tokenizing import target_after, tokenized

VALUES: dict[str, Any] = {
    "model_name": "toy",
    "inner_params": ["a.weight"],
    "archive": None,
    "rank": 6,
    "edit_lr": 1e-2,
    **NETWORK_FIELDS,
}


def letters(*merges: tuple[str, str], space: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A token for each letter and each pair of `merges`; with `space`, one more `▁` is put before
    every text, as old sentencepiece tokenizers do."""
    alphabet = "▁ abcdefghijklmnopqrstuvwxyzFR"
    vocabulary = ["<unk>", *alphabet, *("".join(pair) for pair in merges)]
    inner = Tokenizer(
        BPE({token: n for n, token in enumerate(vocabulary)}, list(merges), unk_token="<unk>")
    )
    if space:
        inner.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def words(tokenizer: Any, found: Any) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(list(found.labels)))


@pytest.mark.parametrize("make", [toy_tokenizer, byte_level_tokenizer])
def test_after_an_english_prompt_every_way_gives_easyedits_ids_and_labels(make: Any) -> None:
    model, tokenizer = toy_model("llama"), make()
    ways = []
    for space in ("auto", "always", "easyedit"):
        batch = make_batch(model, tokenizer, as_requests(REQUESTS, space))
        ways.append((batch.inputs["input_ids"].tolist(), batch.labels.tolist()))

    assert ways[0] == ways[1] == ways[2]


def test_special_tokens_before_a_text_are_labels_as_in_easyedit_unless_never_is_said() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=True)
    found = [
        tokenized(model, tokenizer, "the capital of France is", " Rome", space)
        for space in ("auto", "always", "easyedit", "never")
    ]
    assert found[0] == found[1] == found[2]
    assert words(tokenizer, found[0]) == ["<s>", "Rome"]
    assert words(tokenizer, found[3]) == ["Rome"]


@pytest.mark.parametrize(
    ("prompt", "target", "expected"),
    [
        ("The capital of France is", "Rome", " Rome"),
        ("The capital of France is", " Rome", " Rome"),
        ("The capital of France is", "纽约", " 纽约"),
        ("Websites end in", ".fr", " .fr"),
        ('He said "yes"', "and left", " and left"),
        ("法国的首都是", "纽约", "纽约"),
        ("法国的首都是:", "纽约", " 纽约"),
        ("法国的首都是：", "纽约", "纽约"),
        ("フランスの首都は", "Rome", "Rome"),
        ("เมืองหลวงของฝรั่งเศสคือ", "โรม", "โรม"),
        ("프랑스의 수도는", "로마", " 로마"),
        ("Answer:\n", "Rome", "Rome"),
        ("The capital of France is ", "Rome", "Rome"),
        ("x = f(", "y)", "y)"),
        ('print("', 'hello")', 'hello")'),
        ('He said: "', "Rome", "Rome"),
        ("def f():", "\n    return 1", "\n    return 1"),
    ],
)
def test_auto_follows_the_script_and_the_end_of_the_prompt(
    prompt: str, target: str, expected: str
) -> None:
    assert target_after(prompt, target) == Request(prompt, target).target_text == expected


def test_always_and_never_do_as_they_say() -> None:
    assert target_after("法国的首都是", "纽约", "always") == " 纽约"
    assert target_after("France is", "Rome", "never") == "Rome"
    assert Request("France is", "Rome", target_space="never").target_after("Paris") == "Rome"


def test_labels_are_the_tokens_that_stand_in_the_text_and_easyedits_are_said_where_they_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, tokenizer = toy_model("llama"), letters(space=True)
    request = Request("is", "Rome")
    assert words(tokenizer, tokenized(model, tokenizer, "is", " Rome")) == [*"▁Rome"]
    assert words(tokenizer, tokenized(model, tokenizer, "is", " Rome", "easyedit")) == [*"▁▁Rome"]

    with caplog.at_level(logging.WARNING):
        make_batch(model, tokenizer, as_requests(request, "auto"))
        assert not caplog.records
        with pytest.raises(RequestError, match="no token before its target"):
            tokenized(model, tokenizer, "", " Rome", "easyedit")
        make_batch(model, tokenizer, as_requests(request, "easyedit"))
    assert "Set `target_space: auto`" in caplog.text


def test_a_space_at_the_end_of_the_prompt_is_the_targets() -> None:
    model, tokenizer = toy_model("llama"), letters((" ", "R"))
    found = tokenized(model, tokenizer, "France is ", "Rome")
    assert words(tokenizer, found) == [" R", "o", "m", "e"]


def test_a_token_across_the_targets_beginning_is_refused() -> None:
    model, tokenizer = toy_model("llama"), letters(("s", "o"))
    with pytest.raises(RequestError, match="one token of the end of the prompt"):
        tokenized(model, tokenizer, "this is", "over", "never")
    assert words(tokenizer, tokenized(model, tokenizer, "this is", "over", "easyedit")) == [*"over"]


def test_files_of_easyedits_method_have_its_labels_and_others_those_of_the_text() -> None:
    assert MENDParallelHyperParams(**VALUES).target_space == "auto"
    assert MENDParallelHyperParams(**VALUES, alg_name="MEND").target_space == "easyedit"
    both = MENDParallelHyperParams(**VALUES, alg_name="MEND", target_space="never")
    assert both.target_space == "never"
    with pytest.raises(HparamsError, match="target_space is 'sometimes'"):
        MENDParallelHyperParams(**VALUES, target_space="sometimes")
    with pytest.raises(RequestError, match="target_space is 'sometimes'"):
        Request("a", "b", target_space="sometimes")
