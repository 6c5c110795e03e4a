"""A request means the same alone and in a padded batch, whatever the tokenizer pads with and on
which side, and a request that cannot be turned into a loss is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.normalizers import Replace
from torch import Tensor
from torch.nn import functional as F
from toys import (
    FAMILIES,
    REQUEST,
    REQUESTS,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
    weights,
)
from transformers import PreTrainedTokenizerFast

from easyedit_mend_parallel import MendParallel, Request, RequestError
from easyedit_mend_parallel.forward.batch import IGNORED, make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate

ATTENTION = [(family, "eager") for family in FAMILIES] + [
    (family, "sdpa") for family in ("llama", "mistral", "qwen2", "gpt2")
]
SIDES = ["left", "right"]


def tokenizer_like(model: Any, **options: Any) -> PreTrainedTokenizerFast:
    return toy_tokenizer(eos=model.config.is_encoder_decoder, **options)


def close(one: Tensor, other: Tensor) -> None:
    """Equal to rounding, on the scale of the largest entry."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(("family", "attn"), ATTENTION)
@pytest.mark.parametrize("side", SIDES)
def test_a_request_in_a_padded_batch_has_the_rows_and_the_loss_it_has_alone(
    family: str, attn: str, side: str
) -> None:
    model = toy_model(family, attn=attn)
    tokenizer = tokenizer_like(model, side=side)
    targets = find_targets(model, toy_targets(model))
    rows, losses = capture(model, targets, make_batch(model, tokenizer, as_requests(REQUESTS)))

    for number, request in enumerate(REQUESTS):
        batch = make_batch(model, tokenizer, as_requests(request))
        alone, loss = capture(model, targets, batch)
        close(losses[number : number + 1], loss)
        for name, part in rows.items():
            mine, its = (part.request == number) & part.live, alone[name]
            assert mine.sum() == its.live.sum()
            close(part.x[mine], its.x[its.live])
            close(part.delta[mine], its.delta[its.live])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_logits_at_the_labels_are_those_of_the_unpadded_sentence(family: str, side: str) -> None:
    model = toy_model(family)
    tokenizer = tokenizer_like(model, side=side)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    with torch.no_grad():
        logits = batch.logits(model)

    for number, request in enumerate(REQUESTS):
        prompt, target = request["prompt"], " " + request["target_new"]
        labels = torch.tensor(tokenizer(target)["input_ids"])
        labelled = batch.labels[number] != IGNORED
        assert torch.equal(batch.labels[number][labelled], labels)
        with torch.no_grad():
            if family == "t5":
                ids = torch.tensor([tokenizer(prompt)["input_ids"]])
                expected = model(input_ids=ids, labels=labels[None]).logits[0]
            else:
                ids = torch.tensor([tokenizer(prompt + target)["input_ids"]])
                expected = model(input_ids=ids).logits[0, -len(labels) - 1 : -1]
        close(logits[number][labelled], expected)
        own_mean = F.cross_entropy(expected, labels)
        close(batch.losses(logits)[number], own_mean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_losses_on_a_model_make_logits_only_where_there_are_labels(family: str, side: str) -> None:
    model = toy_model(family)
    batch = make_batch(model, tokenizer_like(model, side=side), as_requests(REQUESTS))
    rows: list[int] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel()))
    with torch.no_grad():
        losses = batch.losses_on(model)
        handle.remove()
        close(losses, batch.losses(batch.logits(model)))

    assert rows == [int((batch.labels != IGNORED).sum())]
    assert not head._forward_pre_hooks, "what was attached is gone"


def test_a_model_whose_output_layer_is_not_called_has_the_same_losses() -> None:
    model = toy_model("llama")
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
    expected = batch.losses_on(model)
    model.get_output_embeddings = lambda: None

    close(batch.losses_on(model), expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_loss_of_a_request_is_its_own_mean_and_no_one_elses(family: str) -> None:
    model = toy_model(family)
    batch = make_batch(model, tokenizer_for(model), as_requests(REQUESTS))
    counts = (batch.labels != IGNORED).sum(1)
    assert len(set(counts.tolist())) > 1, "the targets have to be of unequal length"
    logits = torch.zeros(*batch.labels.shape, 70, requires_grad=True)
    losses = batch.losses(logits)
    close(losses.detach(), torch.full((len(REQUESTS),), 70.0).log())

    for number, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        with_update = gradient.ne(0).any(-1)
        assert torch.equal(with_update[number], batch.labels[number] != IGNORED)
        assert not with_update[torch.arange(len(REQUESTS)) != number].any()


@pytest.mark.parametrize("side", SIDES)
def test_no_loss_falls_on_padding_or_on_the_prompt(side: str) -> None:
    model = toy_model("llama")
    tokenizer = toy_tokenizer(side=side)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))

    ids, labels = batch.inputs["input_ids"], batch.labels
    # What is to be predicted at t is the token at t + 1: a word of the target, never padding.
    sequence, position = (labels != IGNORED).nonzero(as_tuple=True)
    assert torch.equal(labels[sequence, position], ids[sequence, position + 1])
    assert batch.inputs["attention_mask"][sequence, position + 1].all()
    for number, request in enumerate(REQUESTS):
        words = tokenizer.convert_ids_to_tokens(labels[number][labels[number] != IGNORED].tolist())
        assert " ".join(words) == request["target_new"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_a_tokenizer_without_padding_token_gives_the_same_edit_and_is_not_changed(
    family: str, side: str
) -> None:
    model = toy_model(family)
    targets = find_targets(model, toy_targets(model))
    network = toy_network(model, tokenizer_for(model))
    with_pad = tokenizer_like(model, side=side)
    without = tokenizer_like(model, side=side, pad=False)
    assert without.pad_token is None
    before = without.get_vocab(), without.special_tokens_map, without.padding_side
    expected = propose(model, targets, make_batch(model, with_pad, as_requests(REQUESTS)), network)

    proposal = propose(model, targets, make_batch(model, without, as_requests(REQUESTS)), network)

    close(proposal.losses, expected.losses)
    for name, update in proposal.updates.items():
        close(update.values.T @ update.keys, dense(expected.updates[name]))
    assert without.pad_token is None
    assert (without.get_vocab(), without.special_tokens_map, without.padding_side) == before


def test_a_tokenizer_with_neither_padding_nor_end_token_works() -> None:
    model = toy_model("llama")
    bare = toy_tokenizer(pad=False)
    bare.eos_token = None
    expected = make_batch(model, toy_tokenizer(), as_requests(REQUESTS))

    batch = make_batch(model, bare, as_requests(REQUESTS))

    mask = batch.inputs["attention_mask"]
    assert torch.equal(mask, expected.inputs["attention_mask"])
    assert torch.equal(batch.inputs["input_ids"] * mask, expected.inputs["input_ids"] * mask)


def dense(update: LowRankUpdate) -> Tensor:
    """ΔW, out × in."""
    return update.values.T @ update.keys


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", SIDES)
def test_the_update_of_a_batch_is_the_sum_of_its_requests_own_updates(
    family: str, side: str
) -> None:
    model = toy_model(family)
    tokenizer = tokenizer_like(model, side=side)
    targets = find_targets(model, toy_targets(model))
    network = toy_network(model, tokenizer)

    together = propose(
        model, targets, make_batch(model, tokenizer, as_requests(REQUESTS)), network
    ).updates

    alone = [
        propose(model, targets, make_batch(model, tokenizer, as_requests(r)), network).updates
        for r in REQUESTS
    ]
    for name, update in together.items():
        close(dense(update), sum((dense(one[name]) for one in alone), torch.tensor(0.0)))
        for number, one in enumerate(alone):
            mine = update.request == number
            close(update.values[mine].T @ update.keys[mine], dense(one[name]))


@pytest.mark.parametrize("combine", [True, False])
def test_rows_of_padding_are_zero_in_an_update_and_not_absent(combine: bool) -> None:
    model = toy_model("llama")
    tokenizer = toy_tokenizer()
    network = toy_network(model, tokenizer, combine=combine)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    rows, _ = capture(model, network.targets, batch)

    for name, update in network(rows).items():
        live = rows[name].live
        assert len(update.keys) == len(update.values) == len(update.request) == len(live)
        for part in (update.keys, update.values):
            assert torch.equal(part.ne(0).any(1), live)


def test_the_same_request_twice_is_its_update_doubled() -> None:
    model = toy_model("llama")
    tokenizer, names = toy_tokenizer(), toy_targets(model)
    network = toy_network(model, tokenizer)
    targets = find_targets(model, names)

    once, twice = (
        propose(model, targets, make_batch(model, tokenizer, as_requests(requests)), network)
        for requests in (REQUEST, [REQUEST, REQUEST])
    )

    assert len(twice.losses) == 2
    for name in names:
        close(dense(twice.updates[name]), 2 * dense(once.updates[name]))


def test_labels_where_bos_is_prepended_are_the_target_tokenized_alone() -> None:
    tokenizer = toy_tokenizer(bos=True)
    batch = make_batch(toy_model("llama"), tokenizer, as_requests(REQUEST))

    #   <s> the capital of France is Rome and Oslo: EasyEdit's labels are <s> Rome and Oslo, and
    # the logits that should predict them start one place before `is`.
    bos = tokenizer.bos_token_id
    target = tokenizer.convert_tokens_to_ids(["Rome", "and", "Oslo"])
    assert batch.labels.tolist() == [[*[IGNORED] * 4, bos, *target, IGNORED]]
    assert batch.inputs["input_ids"][0, 0] == bos


def test_the_encoder_reads_the_prompt_and_the_decoder_predicts_the_target() -> None:
    model = toy_model("t5")
    tokenizer = toy_tokenizer(eos=True)
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))

    start = model.config.decoder_start_token_id
    for number, request in enumerate(REQUESTS):
        mask = batch.inputs["attention_mask"][number].bool()
        read = batch.inputs["input_ids"][number][mask].tolist()
        target = tokenizer(request["target_new"])["input_ids"]
        assert read == tokenizer(request["prompt"])["input_ids"]
        assert batch.labels[number][: len(target)].tolist() == target
        assert (batch.labels[number][len(target) :] == IGNORED).all()
        fed = batch.inputs["decoder_input_ids"][number]
        assert fed[: len(target)].tolist() == [start, *target[:-1]]


def test_positions_do_not_count_padding() -> None:
    batch = make_batch(toy_model("gpt2"), toy_tokenizer(side="left"), as_requests(REQUESTS))

    for mask, positions in zip(
        batch.inputs["attention_mask"].bool(), batch.inputs["position_ids"], strict=True
    ):
        assert positions[mask].tolist() == list(range(int(mask.sum())))


def test_the_model_is_called_without_a_cache() -> None:
    model = toy_model("llama")
    batch = make_batch(model, toy_tokenizer(), as_requests(REQUEST))
    calls: list[Any] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _m, _a, kwargs: calls.extend(map(kwargs.get, ("cache", "past_key_values"))),
        with_kwargs=True,
    )
    batch.logits(model)
    assert calls == [None, None]


def test_a_space_before_the_target_is_added_once() -> None:
    assert Request("a", "b").target_text == " b"
    assert Request("a", " b").target_text == " b"


def test_requests_come_as_dictionaries_or_requests_one_or_many_and_keep_their_other_fields() -> (
    None
):
    given = {**REQUEST, "subject": "France", "locality": {}}
    (request,) = as_requests(given)
    assert request.other == {"subject": "France", "locality": {}}
    assert as_requests([given]) == as_requests(request) == as_requests([request]) == [request]


BAD: dict[str, tuple[Any, str]] = {
    "no-prompt": ({"target_new": "Rome"}, "request 1 has no 'prompt'"),
    "no-target": ({"prompt": "my name is"}, "request 1 has no 'target_new'"),
    "misspelt": (
        {"prompt": "my name is", "target_nw": "x"},
        r"request 1 has no 'target_new'; did you mean 'target_nw'\?",
    ),
    "empty-prompt": (
        {"prompt": " ", "target_new": "Rome"},
        "request 1: prompt is empty .*' ' -> 'Rome'",
    ),
    "empty-target": (
        {"prompt": "my name is", "target_new": ""},
        "request 1: target_new is empty .*'my name is' -> ''",
    ),
    "blank-target": (
        {"prompt": "my name is", "target_new": " \n"},
        "request 1: target_new is empty",
    ),
    "number": ({"prompt": "my name is", "target_new": 7}, "request 1: target_new is a int.*7"),
    "none": ({"prompt": None, "target_new": "x"}, "request 1: prompt is a NoneType"),
    "no-dictionary": ("my name is", "request 1 is a str"),
    "only-special-tokens": (
        {"prompt": "my name is", "target_new": "</s> <pad>"},
        r"the target '</s> <pad>' of 'my name is' is nothing but special",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_has_no_loss_is_refused_by_name_and_nothing_is_changed(case: str) -> None:
    bad, says = BAD[case]
    model = toy_model("llama")
    tokenizer, names = toy_tokenizer(), toy_targets(model)
    editor = MendParallel(
        model, tokenizer, toy_hparams(names), network=toy_network(model, tokenizer)
    )
    before = weights(model)

    with pytest.raises(RequestError, match=says):
        editor.edit([REQUEST, bad])

    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match="no request"):
        as_requests([])


def test_a_bad_request_is_refused_when_it_is_made() -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        Request("", "Rome")


def test_a_prompt_whose_sentence_is_no_longer_than_the_target_is_refused() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("name", "")  # a prompt that leaves no token
    request = {"prompt": "name", "target_new": "Rome"}
    with pytest.raises(RequestError, match=r"'name' has no token before its target 'Rome'"):
        make_batch(toy_model("llama"), tokenizer, as_requests(request))
