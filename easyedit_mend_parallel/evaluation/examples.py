"""Reads requests, as users and EasyEdit write them, as examples with the texts that test them.

Knows the fields of EasyEdit's request dictionaries; knows no file, no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.evaluation.data import DEFAULT_SPLIT, Example, LocalityText
from easyedit_mend_parallel.forward.requests import Request, as_requests

Asking = Example | Request | Mapping[str, Any]


def as_examples(requests: Sequence[Asking]) -> list[Example]:
    """Examples from `Example`s, `Request`s or EasyEdit's dictionaries. Raises RequestError, naming
    the request by its number (from 0)."""
    plain = as_requests([one.request if isinstance(one, Example) else one for one in requests])
    found = []
    for number, (one, request) in enumerate(zip(requests, plain, strict=True)):
        try:
            found.append(one if isinstance(one, Example) else example_of(request))
        except RequestError as error:
            raise RequestError(f"request {number}: {error}") from None
    return found


def example_of(request: Request) -> Example:
    """A request with the texts that test it.

    Rephrases and neighbours are read from its `rephrases` and `neighbours` (lists), or from
    EasyEdit's `rephrase_prompt` and `locality`; `portability` from either form. Raises
    RequestError for a group without prompts.
    """
    other = request.other
    rephrases = other.get("rephrases") or other.get("rephrase_prompt") or ()
    return Example(
        request=request,
        rephrases=(rephrases,) if isinstance(rephrases, str) else tuple(map(str, rephrases)),
        neighbours=(
            *_listed(other.get("neighbours")),
            *_grouped("locality", other.get("locality")),
        ),
        unrelated=tuple(_listed(other.get("unrelated"))),
        portability=(
            *_listed(other.get("portability")),
            *_grouped("portability", other.get("portability")),
        ),
        subject=other.get("subject"),
        relation=other.get("relation"),
        split=other.get("split") or DEFAULT_SPLIT,
    )


def with_texts(example: Example) -> Request:
    """The request, with all texts that test it in its other fields, where `example_of` finds them.
    A saved edit can then be evaluated without the original file."""
    told = {
        "rephrases": list(example.rephrases),
        "neighbours": _as_fields(example.neighbours),
        "unrelated": _as_fields(example.unrelated),
        "portability": _as_fields(example.portability),
    }
    fields = {name: texts for name, texts in told.items() if texts}
    return Request(
        example.request.prompt,
        example.request.target_new,
        {**example.request.other, **fields},
        example.request.target_space,
    )


def _as_fields(texts: Sequence[LocalityText]) -> list[dict[str, str]]:
    return [
        {
            "prompt": text.prompt,
            "target": text.target.strip(),
            **({"name": text.name} if text.name else {}),
        }
        for text in texts
    ]


def _listed(texts: Any) -> Iterator[LocalityText]:
    if isinstance(texts, Mapping):
        return
    for one in texts or ():
        if isinstance(one, str):
            yield LocalityText(one)
        else:
            yield LocalityText(one["prompt"], one.get("target") or "", one.get("name") or "")


def _grouped(field: str, groups: Any) -> Iterator[LocalityText]:
    """The texts of EasyEdit's {name: {"prompt": one or many, "ground_truth": ...}}."""
    if not isinstance(groups, Mapping):
        return
    for name, one in groups.items():
        if not isinstance(one, Mapping) or "prompt" not in one:
            raise RequestError(f"{field} {name!r} has no 'prompt', as EasyEdit's has")
        prompts, truths = one["prompt"], one.get("ground_truth") or ""
        if isinstance(prompts, str):
            prompts, truths = [prompts], [truths]
        for prompt, truth in zip(prompts, truths or [""] * len(prompts), strict=True):
            yield LocalityText(prompt, truth, str(name))
