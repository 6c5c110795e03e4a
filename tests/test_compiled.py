"""A compiled model has its edits, whether it was compiled before them or after, and loses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import scoped_toys
import torch
from edited import FACTS, editor_of
from scoped_toys import THREE
from torch import Tensor
from toys import OBSERVED, tokenizer_for, toy_model
from transformers import CompileConfig

from easyedit_mend_parallel import MendParallel, TargetError
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests

PROMPTS = [THREE[0], OBSERVED[0]]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def editor(model: Any, apply: str) -> MendParallel:
    if apply == "scoped":
        return scoped_toys.editor_of(model)
    return editor_of(model, apply, edit_lr=1e-1)


def requests(apply: str) -> list[dict[str, str]]:
    return THREE if apply == "scoped" else FACTS


@torch.no_grad()
def said(call: Callable[..., Any], model: Any) -> list[Tensor]:
    """The logits that a call, compiled or not, gives for each prompt of `PROMPTS`."""
    batches = [make_batch(model, tokenizer_for(model), as_requests(one)) for one in PROMPTS]
    return [call(**batch.inputs).logits for batch in batches]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def compiled(model: Any, how: str) -> Callable[..., Any]:
    if how == "in place":
        model.compile(backend="eager", dynamic=True)
        return model
    return torch.compile(model, backend="eager", dynamic=True)


@pytest.mark.parametrize(
    ("how", "apply"),
    [("in place", "weight"), ("in place", "output"), ("in place", "scoped"), ("wrapped", "output")],
)
def test_a_model_that_is_compiled_feels_an_edit_and_its_undo(how: str, apply: str) -> None:
    plain, model = toy_model("llama"), toy_model("llama")
    base = said(plain, plain)
    editor(plain, apply).edit(requests(apply))
    want = said(plain, plain)
    assert (base[0] - want[0]).abs().max() > 0.1

    call = compiled(model, how)
    assert_same(said(call, model), base)
    result = editor(model, apply).edit(requests(apply))
    assert_same(said(call, model), want)
    result.rollback()
    assert_same(said(call, model), base)


@pytest.mark.parametrize("apply", ["output", "scoped"])
def test_a_model_that_was_compiled_between_two_edits_feels_both(apply: str) -> None:
    plain, model = toy_model("llama"), toy_model("llama")
    call = compiled(model, "wrapped")
    for one in (plain, model):
        edits = editor(one, apply)
        edits.edit(requests(apply)[1])
        said(call, model)
        edits.edit(requests(apply)[0])

    assert_same(said(call, model), said(plain, plain))


@pytest.mark.parametrize("apply", ["weight", "output"])
def test_text_from_a_static_cache_has_the_edit(apply: str) -> None:
    plain, model = toy_model("llama"), toy_model("llama")
    settings = CompileConfig(backend="eager", dynamic=True)
    settings._compile_all_devices = True

    def written(one: Any, **options: Any) -> list[list[int]]:
        ids = [tokenizer_for(one)(fact["prompt"], return_tensors="pt") for fact in PROMPTS]
        return [
            one.generate(**each, max_new_tokens=3, do_sample=False, **options).tolist()
            for each in ids
        ]

    static = {"cache_implementation": "static", "compile_config": settings}
    base = written(plain)
    assert written(model, **static) == base

    editor(plain, apply).edit(requests(apply))
    editor(model, apply).edit(requests(apply))
    want = written(plain)
    assert want != base
    assert written(model, **static) == want
    editor(model, apply).rollback_all()
    assert written(model, **static) == base


@pytest.mark.parametrize("options", [{"sequence": "solve", "aggregate": "least_squares"}, {}])
def test_a_model_that_was_compiled_in_place_is_edited_as_the_same_model_plain(options: Any) -> None:
    plain, model = toy_model("llama"), toy_model("llama")
    said(compiled(model, "in place"), model)
    for one in (plain, model):
        edits = editor_of(one, edit_lr=1e-1, **options)
        edits.edit(FACTS[:2])
        edits.edit(FACTS[2])

    assert_same(said(model, model), said(plain, plain))


def test_the_wrapper_of_a_compiled_model_is_refused_and_compile_named() -> None:
    model = torch.compile(toy_model("llama"), backend="eager")

    with pytest.raises(TargetError, match=r"torch\.compile.*_orig_mod"):
        editor_of(model)
