"""What `show` and `edit` say of answers is what the model says, whatever its tokenizer adds."""

from __future__ import annotations

import pytest
import torch
from toys import toy_model, toy_tokenizer

from easyedit_mend_parallel import RequestError
from easyedit_mend_parallel.evaluation.answers import answers_of, probabilities
from easyedit_mend_parallel.forward.requests import Request

REQUEST = Request(
    "the capital of France is",
    "Rome and Oslo",
    {"ground_truth": "Paris", "neighbours": ["the sun rises in the"]},
)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_a_probability_is_that_of_the_answers_own_tokens(bos: bool, eos: bool, side: str) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer(bos=bos, eos=eos, side=side)
    answers = answers_of(model, tokenizer, [REQUEST])
    assert [(one.kind, one.role, one.answer) for one in answers[:2]] == [
        ("prompt", "new", "Rome and Oslo"),
        ("prompt", "old", "Paris"),
    ]
    assert (answers[2].kind, answers[2].role) == ("neighbour", "old")

    for answer, found in zip(answers, probabilities(model, tokenizer, answers), strict=True):
        special = tokenizer.all_special_ids
        own = [token for token in answer.tokens.labels if token not in special]
        assert tokenizer.decode(own) == answer.answer
        ids = list(answer.tokens.ids)
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [place for place, token in enumerate(ids) if token not in special][-len(own) :]
        expected = torch.stack([logs[place - 1, ids[place]] for place in places]).mean().exp()
        assert found == pytest.approx(float(expected), rel=1e-4)


def test_the_neighbours_and_rephrases_of_easyedits_requests_are_asked_too() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    locality = {"near": {"prompt": ["who wrote Hamlet", "my cat sat on"], "ground_truth": None}}
    truths = {"far": {"prompt": "water boils at one", "ground_truth": "hundred degrees"}}
    other = {"rephrase_prompt": "the town of France is", "locality": locality | truths}
    answers = answers_of(model, tokenizer, [Request("who wrote Hamlet", "a cat", other)])
    assert [(one.kind, one.prompt) for one in answers] == [
        ("prompt", "who wrote Hamlet"),
        ("rephrase", "the town of France is"),
        ("neighbour", "who wrote Hamlet"),
        ("neighbour", "my cat sat on"),
        ("neighbour", "water boils at one"),
    ]
    assert answers[-1].answer == "hundred degrees"
    broken = Request("who wrote Hamlet", "a cat", {"locality": {"near": {"text": "a"}}})
    with pytest.raises(RequestError, match="locality 'near' has no 'prompt'"):
        answers_of(model, tokenizer, [broken])
