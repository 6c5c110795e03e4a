"""Requests that cannot be edited or saved are refused before the model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edited import FACTS, editor_of
from toys import assert_unchanged, toy_model, weights

from easyedit_mend_parallel import Request, RequestError, load_edit


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


class Mute:
    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


ODD: dict[str, tuple[Any, str]] = {
    "half a surrogate in the prompt": (
        {"prompt": "the sun \ud800 rises", "target_new": "east"},
        "request 0: prompt holds half of a surrogate pair at character 8",
    ),
    "half a surrogate in the target": (
        {"prompt": "the sun rises in the", "target_new": "\udc00"},
        "target_new holds half of a surrogate pair",
    ),
    "a number": (7, "and is 7"),
    "a class": (Request, "a request or a list of them"),
    "a text": ("the capital of France is", "a request or a list of them"),
    "nothing": (None, "and is nothing"),
    "an empty generator": ((one for one in ()), "no request was given"),
    "an empty list": ([], "no request was given"),
    "a list of numbers": ([1], "request 0 is a int"),
    "a cycle": ({**FACTS[0], "more": cycle()}, "cannot be saved as JSON"),
    "a tuple as key": ({**FACTS[0], "more": {(1, 2): 3}}, "cannot be saved as JSON"),
    "a tuple as name": ({**FACTS[0], (1, 2): 3}, "cannot be saved as JSON"),
    "depth": ({**FACTS[0], "more": nested(100_000)}, "nested too deeply"),
    "an object without a text": ({**FACTS[0], "more": Mute()}, "cannot be saved as JSON"),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_request_is_refused_before_anything_changes(odd: str) -> None:
    requests, message = ODD[odd]
    model = toy_model("llama")
    editor = editor_of(model)
    before = weights(model)

    with pytest.raises(RequestError, match=message):
        editor.edit(requests)
    assert_unchanged(model, before)


def test_further_fields_that_are_no_dictionary_are_refused() -> None:
    with pytest.raises(RequestError, match="cannot be saved as JSON"):
        Request("the sun rises in the", "east", 5)  # type: ignore[arg-type]


def test_a_generator_of_requests_is_edited_as_their_list(tmp_path: Path) -> None:
    plain, model = toy_model("llama"), toy_model("llama")
    editor_of(plain).edit(FACTS)
    result = editor_of(model).edit(one for one in FACTS)

    assert_unchanged(model, weights(plain))
    assert len(load_edit(result.save(tmp_path / "edit")).requests) == len(FACTS)


def test_what_is_accepted_is_saved_whatever_its_further_fields_hold(tmp_path: Path) -> None:
    model = toy_model("llama")
    more = {"half": "\ud800", "nan": float("nan"), "pair": (1, 2), "deep": nested(50), "none": None}
    result = editor_of(model).edit({**FACTS[0], **more})

    found = load_edit(result.save(tmp_path / "edit")).requests[0].other
    assert found["half"] == "\ud800"
    assert found["pair"] == [1, 2]
    assert found["deep"] == nested(50)
