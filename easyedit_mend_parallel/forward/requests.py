"""Requests: the edits that a user wants, checked before anything is computed.

Knows nothing of tokens or models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from easyedit_mend_parallel.errors import RequestError, suggestion
from easyedit_mend_parallel.forward.tokenizing import AUTO, TARGET_SPACE, target_after

log = logging.getLogger(__name__)

FIELDS = ("prompt", "target_new")
ROOM = 100
"""Levels of nesting that further fields leave free."""


@dataclass(frozen=True)
class Request:
    """One edit: after `prompt` the model must continue with `target_new`.

    `other` has the other fields of EasyEdit's request dictionaries (subject, rephrase_prompt,
    locality, ...); the edit does not depend on them. `target_space` says what stands between prompt
    and target (`tokenizing.target_after`); None: what the hyperparameters say, or `auto`.
    """

    prompt: str
    target_new: str
    other: Mapping[str, Any] = field(default_factory=dict)
    target_space: str | None = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            value = getattr(self, name)
            if not isinstance(value, str):
                raise RequestError(f"{name} is a {type(value).__name__}, not a string: {value!r}")
            if not value.strip():
                raise RequestError(f"{name} is empty in the request {self._say()}")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"{name} holds half of a surrogate pair at character {error.start} in the "
                    f"request {self._say()}: no tokenizer can read it; write the character whole"
                ) from None
        if self.target_space not in (None, *TARGET_SPACE):
            raise RequestError(
                f"target_space is {self.target_space!r} in the request {self._say()}; it has to be "
                f"one of {', '.join(TARGET_SPACE)}"
            )
        _refuse_unwritable(self.other, self._say())

    @property
    def target_text(self) -> str:
        """The target as it follows the prompt, with a space before it where one belongs there."""
        return self.target_after(self.prompt)

    def target_after(self, prompt: str) -> str:
        """The target as it follows `prompt`, the request's own or a rephrase of it."""
        return target_after(prompt, self.target_new, self.target_space or AUTO)

    def _say(self) -> str:
        return f"{self.prompt!r} -> {self.target_new!r}"


def as_requests(
    requests: Request | Mapping[str, Any] | Iterable[Request | Mapping[str, Any]],
    target_space: str | None = None,
) -> list[Request]:
    """A list of requests, from one or many `Request`s or EasyEdit's dictionaries.

    `target_space` is that of requests that do not say theirs.

    Raises RequestError for a missing field, an empty string, text that is no Unicode, further
    fields that no file could keep, or no request at all. The error names the request by its number
    (from 0).
    """
    if isinstance(requests, (Request, Mapping)):
        requests = [requests]
    elif isinstance(requests, (str, bytes, type)) or not hasattr(requests, "__iter__"):
        said = "nothing" if requests is None else f"{requests!r:.60}"
        raise RequestError(
            f"requests has to be a request or a list of them, and is {said}: give dictionaries "
            "with 'prompt' and 'target_new'"
        )
    requests = list(requests)
    if not requests:
        raise RequestError("no request was given")
    return [_as_request(number, request, target_space) for number, request in enumerate(requests)]


def _refuse_unwritable(other: Any, request: str) -> None:
    """Raise RequestError for further fields that cannot become JSON, in which edits are saved.

    Single values that JSON does not know become text; keys, cycles and depth cannot.
    """
    nested = other
    try:
        nested = dict(other)
        for _ in range(ROOM):  # files nest the fields deeper, and callers use the stack
            nested = [nested]
        json.dumps(nested, default=str)
    except Exception as error:  # an object's own __str__ may raise anything
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(
            f"the further fields of the request {request} cannot be saved as JSON ({why}): give "
            "plain values under names that are text, or leave them out"
        ) from None


def without_repeats(requests: Sequence[Request]) -> list[Request]:
    """`requests` without repeats, in order. A log message names each repeated request.

    Raises RequestError, with the names of all of them, if two requests have the same prompt and
    different target texts.
    """
    first: dict[str, int] = {}
    kept, contradictions = [], []
    for number, request in enumerate(requests):
        before = first.setdefault(request.prompt, number)
        if before == number:
            kept.append(request)
        elif requests[before].target_text == request.target_text:
            log.warning("request %d repeats request %d and is left out", number, before)
        else:
            contradictions.append(
                f"requests {before} and {number} want {requests[before].target_new!r} and "
                f"{request.target_new!r} after {request.prompt!r}"
            )
    if contradictions:
        raise RequestError(
            f"one batch cannot hold requests that contradict each other: "
            f"{'; '.join(contradictions)}. Nothing was changed; keep one of each, or edit them one "
            "after the other"
        )
    return kept


def _as_request(
    number: int, request: Request | Mapping[str, Any], target_space: str | None
) -> Request:
    if isinstance(request, Request):
        return replace(request, target_space=request.target_space or target_space)
    if not isinstance(request, Mapping):
        raise RequestError(f"request {number} is a {type(request).__name__}, not a dictionary")
    for name in FIELDS:
        if name not in request:
            raise RequestError(f"request {number} has no {name!r}" + suggestion(name, request))
    other = {name: value for name, value in request.items() if name not in FIELDS}
    try:
        return Request(request["prompt"], request["target_new"], other, target_space)
    except RequestError as error:
        raise RequestError(f"request {number}: {error}") from None
