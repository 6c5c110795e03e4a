"""What an evaluation says is what the model does: asked and let write, before and after edits, and
the model is the one it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from edited import editor_of
from toys import (
    DECODERS,
    assert_unchanged,
    tokenizer_for,
    toy_model,
    toy_tokenizer,
    weights,
)

from easyedit_mend_parallel import RequestError
from easyedit_mend_parallel.errors import WorseError
from easyedit_mend_parallel.evaluation import (
    Evaluation,
    Score,
    as_examples,
    evaluate,
    figures,
    held_text,
    likelihoods,
    record,
    score,
)
from easyedit_mend_parallel.evaluation.free_text import judged, repetition
from easyedit_mend_parallel.evaluation.generation import written
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests

REQUESTS = [
    {
        "prompt": "the capital of France is",
        "target_new": "Rome and Oslo",
        "rephrase_prompt": "the town of France is",
        "locality": {"near": {"prompt": "water boils at", "ground_truth": "one hundred degrees"}},
        "portability": {"hop": {"prompt": ["the river of France is"], "ground_truth": ["a sea"]}},
    },
    {
        "prompt": "who wrote Hamlet",
        "target_new": "a stone",
        "rephrases": ["some people say that who wrote Hamlet", "who wrote the old Hamlet"],
        "neighbours": ["who wrote my name", "the sun rises in the"],
        "unrelated": ["a cat sat on the mat", "water boils at one hundred degrees"],
    },
    {"prompt": "the sun rises in the", "target_new": "west"},
]
HELD = ["the old town stands by the sea", "some people say that the red stone never moves"]


def edit_of(model: Any, **options: Any) -> Callable[[Any], Any]:
    return editor_of(model, **options).edit


def by_hand(model: Any, tokenizer: Any, prompt: str, target: str) -> tuple[float, float]:
    """(all tokens of the target are the argmax, share of them), from one unpadded forward."""
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {target}")["input_ids"]
    with torch.no_grad():
        said = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1)[len(before) - 1 : -1]
    right = (said == torch.tensor(ids[len(before) :])).float()
    return float(bool(right.all())), right.mean().item()


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_single_edits_are_judged_as_if_each_was_in_the_weights_alone(
    family: str, side: str
) -> None:
    model = toy_model(family)
    tokenizer = toy_tokenizer(side=side)
    edit = edit_of(model)
    before = weights(model)

    found = evaluate(model, tokenizer, REQUESTS, edit, held=HELD, targets=editor_of(model).targets)

    assert_unchanged(model, before)
    in_weights = evaluate(model, tokenizer, REQUESTS, edit, held=HELD, at_outputs=False)
    assert_unchanged(model, before)
    assert set(found.answers.said) == set(in_weights.answers.said)
    for number, said in found.answers.said.items():
        other = in_weights.answers.said[number]
        assert said.tokens == other.tokens
        assert said.loss == pytest.approx(other.loss, rel=1e-3)
    for number, text in found.answers.texts.items():
        assert text.ids == in_weights.answers.texts[number].ids
    for example in as_examples(REQUESTS):
        result = edit([example.request])
        asked = [q for q in found.recorded.questions if q.target and q.request == 0]
        if example.request.prompt == REQUESTS[0]["prompt"]:
            for number, question in enumerate(asked):
                said = found.answers.said[found.recorded.questions.index(question)]
                right = [a == b for a, b in zip(said.tokens, said.expected, strict=True)]
                share = sum(right) / len(right)
                expected = by_hand(model, tokenizer, question.prompt, question.target.strip())
                assert (float(all(right)), share) == pytest.approx(expected), number
        result.rollback()


def test_the_edited_model_says_something_else() -> None:
    """Or the test before this one would compare nothing."""
    model = toy_model("llama")
    found = evaluate(model, toy_tokenizer(), REQUESTS, edit_of(model), held=HELD)
    changed = [
        number
        for number, said in found.answers.said.items()
        if said.tokens != found.recorded.answers.said[number].tokens
    ]
    assert changed
    assert any(
        text.ids != found.recorded.answers.texts[n].ids for n, text in found.answers.texts.items()
    )
    assert found.after["perplexity"].mean != found.before["perplexity"].mean


def test_a_record_is_scored_as_often_as_one_likes_and_only_calls_the_model() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    recorded = record(model, tokenizer, REQUESTS, held=HELD)
    assert score(model, recorded) == recorded.answers
    result = edit_of(model)(as_requests(REQUESTS))
    of_two = score(model, recorded, [0, 2])
    everything = score(model, recorded)
    result.rollback()

    about = {recorded.questions[number].request for number in of_two.texts}
    assert about == {0, 2}
    lines = [recorded.questions[n].prompt for n in of_two.said if not recorded.questions[n].target]
    assert [line for line in lines if line in HELD] == HELD
    assert everything.said != recorded.answers.said
    assert figures(recorded, of_two)["edit"].n == 2
    assert score(model, recorded) == recorded.answers


@pytest.mark.parametrize("how", ["sequence", "batch"])
def test_edits_in_the_weights_are_all_taken_back(how: str) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    before = weights(model)
    editor = editor_of(model)

    found = evaluate(model, tokenizer, REQUESTS, editor.edit, how=how, targets=editor.targets)

    assert_unchanged(model, before)
    requests = as_requests(REQUESTS)
    for part in [requests] if how == "batch" else [[one] for one in requests]:
        editor.edit(part)
    recorded = dataclasses.replace(found.recorded, asker=record(model, tokenizer, REQUESTS).asker)
    expected = score(model, recorded)
    assert {n: s.tokens for n, s in found.answers.said.items()} == {
        n: s.tokens for n, s in expected.said.items()
    }


def test_an_exception_on_the_way_leaves_the_model_as_it_was() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    before, edit = weights(model), edit_of(model)

    def broken(requests: Any) -> Any:
        if requests[0].prompt == REQUESTS[2]["prompt"]:
            raise KeyboardInterrupt
        return edit(requests)

    for how in ("one-by-one", "sequence"):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, REQUESTS, broken, how=how)
        assert_unchanged(model, before)


def test_a_refused_edit_counts_as_none_and_is_said() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    edit = edit_of(model)

    def refusing(requests: Any) -> Any:
        if requests[0].target_new == "a stone":
            raise WorseError("it would be less likely")
        return edit(requests)

    found = evaluate(model, tokenizer, REQUESTS, refusing)

    assert found.refused == {1: "it would be less likely"}
    for number, question in enumerate(found.recorded.questions):
        if question.request == 1:
            assert found.answers.said[number].tokens == found.recorded.answers.said[number].tokens
    lines = list(found.lines())
    assert {line["request"] for line in lines if "refused" in line} == {1}


@pytest.mark.parametrize("family", [*DECODERS, "t5"])
def test_text_written_in_a_batch_is_that_of_one_prompt_after_the_other(family: str) -> None:
    model = toy_model(family)
    tokenizer = tokenizer_for(model)
    prompts = [tokenizer(one["prompt"])["input_ids"] for one in REQUESTS]
    model.generation_config.repetition_penalty = 5.0  # is left out
    limits = [3, 9, 6]

    together = written(model, tokenizer, prompts, limits)

    assert model.generation_config.repetition_penalty == 5.0
    for prompt, limit, (ids, ended) in zip(prompts, limits, together, strict=True):
        assert (ids, ended) == one_after_the_other(model, tokenizer, prompt, limit)


def one_after_the_other(
    model: Any, tokenizer: Any, prompt: list[int], limit: int
) -> tuple[list[int], bool]:
    """Greedy text without a cache or padding."""
    decodes = model.config.is_encoder_decoder
    ids: list[int] = []
    for _ in range(limit):
        if decodes:
            inputs = {"input_ids": [prompt], "decoder_input_ids": [[3, *ids]]}
        else:
            inputs = {"input_ids": [[*prompt, *ids]]}
        with torch.no_grad():
            logits = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
        token = int(logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return ids, True
        ids.append(token)
    return ids, False


def test_a_text_that_never_stops_is_cut_and_counted() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[2] = -100 * model.lm_head.weight[5]  # no end-of-text token
        model.lm_head.weight.mul_(0).add_(0.0)
    found = record(model, tokenizer, REQUESTS, new_tokens=5)
    texts = found.answers.texts.values()
    answer = [len(q.target.split()) for q in found.questions if q.kind in ("edit", "rephrase")]
    assert [len(text.ids) for text in texts] == [5 + n for n in answer]
    assert all(not text.ended and not text.judgement.ends for text in texts)
    scores = figures(found, found.answers)
    assert scores["text_ends"].mean == 0
    assert scores["repetition"].mean > 0.5


@pytest.mark.parametrize(
    ("text", "answer", "first", "once", "ends"),
    [
        (" Rome. Rome is old", "Rome", True, True, True),
        (" Rome Rome Rome Rome", "Rome", True, False, False),
        (" Rome, not Romeo and", "Rome", True, True, False),
        (" Romeo is", "Rome", False, False, False),
        (" the town of Rome\n", "Rome", False, False, True),
        (" 3.5 metres", "3.5", True, True, False),
        ("St. Gallen. It", "St. Gallen", True, True, True),
        ("纽约市。", "纽约", True, True, True),
        (" Go home. Go home. Then", "Go home.", True, True, True),
        ("", "Rome", False, False, False),
    ],
)
def test_an_answer_comes_first_and_once_before_the_natural_stop(
    text: str, answer: str, first: bool, once: bool, ends: bool
) -> None:
    found = judged(text, answer, [], ended=False)
    assert (found.first, found.once, found.ends) == (first, once, ends)
    assert judged(text, answer, [], ended=True).ends


def test_repetition_is_the_share_of_bigrams_that_were_there_before() -> None:
    assert repetition([7, 7, 7, 7, 7]) == 0.75
    assert repetition([1, 2, 3, 1, 2]) == 0.25
    assert repetition([1, 2, 3]) == repetition([1]) == repetition([]) == 0


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_base_is_asked_how_likely_what_follows_the_answer_is(family: str) -> None:
    model = toy_model(family)
    tokenizer = tokenizer_for(model)
    found = record(model, tokenizer, REQUESTS, new_tokens=4)
    prompts = {n: tokenizer(found.questions[n].prompt)["input_ids"] for n in found.given}
    for number, text in found.given.items():
        answer, rest = text.ids[: text.answer], text.ids[text.answer :]
        assert tokenizer.decode(answer) == found.questions[number].target.strip()
        if not rest:
            assert text.base is None
            continue
        if family == "t5":
            inputs = {"input_ids": prompts[number], "decoder_input_ids": [3, *text.ids]}
            start = 1
        else:
            inputs = {"input_ids": [*prompts[number], *text.ids]}
            start = len(prompts[number])
        with torch.no_grad():
            out = model(**{name: torch.tensor([ids]) for name, ids in inputs.items()})
        logs = out.logits[0].log_softmax(-1)
        where = [start + text.answer + n - 1 for n in range(len(rest))]
        expected = torch.stack([logs[p, token] for p, token in zip(where, rest, strict=True)])
        assert text.base == pytest.approx(expected.mean().item(), rel=1e-3)
    assert likelihoods(model, found, found.given) == found.given


def test_perplexity_is_that_of_all_tokens_after_each_first() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    found = record(model, tokenizer, REQUESTS[:1], held=HELD, free=False)
    total, count = 0.0, 0
    for line in HELD:
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= logs.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    perplexity = figures(found, found.answers)["perplexity"]
    assert perplexity.mean == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-4)
    assert perplexity.low < perplexity.mean < perplexity.high


def test_figures_of_the_texts_that_easyedits_requests_have() -> None:
    model = toy_model("llama")
    found = evaluate(model, toy_tokenizer(), REQUESTS, edit_of(model))
    assert {"locality.near_acc", "portability.hop_acc", "portability", "rewrite_acc"} <= set(
        found.after
    )
    assert found.after["rewrite_acc"].n == found.after["edit"].n == 3
    assert found.after["rephrase"].n == 3
    assert found.after["neighbours"].n == 3
    assert found.after["unrelated"].n == 2
    assert found.before["neighbours"].mean == found.before["locality.near_acc"].mean == 1


def test_what_cannot_be_asked_is_refused_before_anything_is() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()

    def untouched(*_: Any) -> Any:
        raise AssertionError

    def asked(request: dict[str, Any], **options: Any) -> Evaluation:
        return evaluate(model, tokenizer, [REQUESTS[0], request], untouched, **options)

    model.forward = untouched
    long = {"prompt": "who wrote Hamlet", "target_new": "a stone " * 40}
    with pytest.raises(RequestError, match="has 83 tokens, and the model's context has 64"):
        asked(long)
    with pytest.raises(RequestError, match="request 1 has no 'target_new'"):
        asked({"prompt": "who wrote Hamlet"})
    with pytest.raises(RequestError, match="request 1: locality 'near' has no 'prompt'"):
        asked({**REQUESTS[1], "locality": {"near": {"text": "a"}}})
    with pytest.raises(RequestError, match="no chat template"):
        asked(REQUESTS[1], chat=True)
    with pytest.raises(RequestError, match=r"no way 'one by one'.*did you mean 'one-by-one'"):
        asked(REQUESTS[1], how="one by one")
    with pytest.raises(RequestError, match="no request was given"):
        record(model, tokenizer, [])


def test_in_chat_form_prompts_go_through_the_template_and_targets_have_no_space() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}some people say {{ m['content'] }}{% endfor %}"
        " the answer is "
    )
    found = record(model, tokenizer, REQUESTS[:1], chat=True, free=False)
    question = found.questions[0]
    ids = found.asker.tokenized(model, question).ids
    said = "<s> some people say the capital of France is the answer is Rome and Oslo"
    assert ids == tuple(tokenizer(said, add_special_tokens=False)["input_ids"])
    assert found.answers.said[0].expected == tuple(
        tokenizer("Rome and Oslo", add_special_tokens=False)["input_ids"]
    )


def test_intervals() -> None:
    assert Score.of([1.0] * 24).low == pytest.approx(0.862, abs=1e-3)
    mean = Score.of_numbers([-1.0, -2.0, -3.0])
    assert (mean.mean, mean.high) == pytest.approx((-2, -2 + 1.96 * (1 / 3) ** 0.5), abs=1e-3)
    alike = Score.of_perplexity([4.0, 8.0], [2, 4])
    assert alike.mean == alike.low == alike.high == pytest.approx(7.389, abs=1e-3)


def test_the_text_that_ships_is_no_text_that_batches_hold_still() -> None:
    from easyedit_mend_parallel.method.preserved_text import lines_of

    assert not set(held_text()) & set(lines_of(None))
    assert len(held_text()) > 20


def test_edits_of_the_toy_are_measured_by_training_as_by_an_evaluation() -> None:
    from easyedit_mend_parallel.evaluation.measures import evaluate as validated
    from easyedit_mend_parallel.forward.texts import Texts

    model, tokenizer = toy_model("llama"), toy_tokenizer()
    editor = editor_of(model)
    examples = [
        dataclasses.replace(one, unrelated=one.unrelated[:1]) for one in as_examples(REQUESTS)
    ]
    (ours,) = validated(
        Texts(model, tokenizer), editor.targets, editor.network, examples, ["a cat sat on the mat"]
    )
    found = evaluate(
        model, tokenizer, examples, editor.edit, unrelated=["a cat sat on the mat"], free=False
    )
    for name, one in ours.scores.items():
        assert one == found.after[name]
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    assert batch.n_requests == 3
