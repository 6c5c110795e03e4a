"""Runs a whole evaluation: records the model, edits it, scores it, and undoes the edits to the bit.

Knows of an edit only that it can be undone. The caller gives the function that makes edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from easyedit_mend_parallel.errors import RequestError, WorseError, suggestion
from easyedit_mend_parallel.evaluation.examples import Asking
from easyedit_mend_parallel.evaluation.figures import answer_lines, figures, given_figures
from easyedit_mend_parallel.evaluation.generation import attach_nothing
from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.evaluation.recording import (
    NEW_TOKENS,
    Answers,
    Recorded,
    answers_to,
    likelihoods,
    record,
    score,
)
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

ONE_BY_ONE, SEQUENCE, BATCH = "one-by-one", "sequence", "batch"
HOW = (ONE_BY_ONE, SEQUENCE, BATCH)
"""Ways to edit: each request by itself, undone before the next; one after another; in one
update."""
TOGETHER = 32
"""Maximum number of single edits that are measured together, each on its own texts."""


class Edited(Protocol):
    """An edit in a model that can be undone. If it also has `updates` {target name: LowRankUpdate}
    and `targets` {name: Target}, like an `EditResult`, single edits are measured together."""

    def rollback(self) -> None: ...


Editing = Callable[[Sequence[Request]], Edited]


@dataclass(frozen=True)
class Evaluation:
    """The recorded answers before the edits, the `answers` after them, and `refused`: {index of a
    request: why its edit was refused}. A refused edit counts as no edit."""

    recorded: Recorded
    answers: Answers
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def before(self) -> dict[str, Score]:
        return figures(self.recorded, self.recorded.answers)

    @property
    def after(self) -> dict[str, Score]:
        return figures(self.recorded, self.answers)

    @property
    def given(self) -> dict[str, Score]:
        """The figures of the text that the unedited model generates after prompt and answer."""
        return given_figures(self.recorded)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every single answer, as JSON values."""
        decode = self.recorded.asker.tokenizer.decode
        for line in answer_lines(self.recorded, self.answers, decode):
            refused = self.refused.get(line["request"])
            yield line if refused is None else {**line, "refused": refused}


def evaluate(
    model: Any,
    tokenizer: Any,
    requests: Sequence[Asking],
    edit: Editing,
    *,
    how: str = ONE_BY_ONE,
    unrelated: Sequence[str] = (),
    held: Sequence[str] = (),
    free: bool = True,
    new_tokens: int = NEW_TOKENS,
    chat: bool = False,
    targets: Sequence[Target] = (),
    at_outputs: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Record `model`, edit it, score it, and undo the edits to the bit.

    Args:
        edit: makes an edit of some requests in `model`: `MendParallel(...).edit`, or any other
            method that can undo its edits. An edit that raises WorseError counts as none.
        how: one of `HOW`.
        at_outputs: measure single edits together: their low-rank updates are removed from the
            weights and each is added to the outputs for its own texts, which gives the logits of
            the edited weights within rounding. With False each edit is measured in the weights;
            needed for edits that are more than their update (a scope).
        progress: called with the current task, the number of finished parts, and their total.

    The other arguments are those of `record`. Raises what `record` and `edit` raise, and
    RequestError for another `how`. The edits are then undone, too.
    """
    if how not in HOW:
        raise RequestError(
            f"there is no way {how!r} to edit{suggestion(how, HOW)}: use one of {', '.join(HOW)}"
        )
    recorded = record(
        model,
        tokenizer,
        requests,
        unrelated=unrelated,
        held=held,
        free=free,
        new_tokens=new_tokens,
        chat=chat,
        targets=targets,
        progress=lambda done: progress("recording", done, 0),
    )
    run = _Run(model, recorded, edit, progress)
    if how == ONE_BY_ONE:
        run.one_by_one(at_outputs)
    else:
        run.all_at_once(as_one=how == BATCH)
    answers = replace(run.answers, texts=likelihoods(model, recorded, run.answers.texts))
    return Evaluation(recorded, answers, run.refused)


class _Run:
    """The edits of one evaluation, and the answers of the model with them."""

    def __init__(
        self,
        model: Any,
        recorded: Recorded,
        edit: Editing,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.model, self.recorded, self._edit = model, recorded, edit
        self._progress = progress
        self.answers = Answers()
        self.refused: dict[int, str] = {}

    def one_by_one(self, at_outputs: bool) -> None:
        numbers = range(len(self.recorded.examples))
        for start in range(0, len(numbers), TOGETHER):
            waiting = _Waiting(self.model)
            for number in numbers[start : start + TOGETHER]:
                edited = self._made(number)
                try:
                    if edited is None or (at_outputs and _is_low_rank(edited)):
                        waiting.add(number, edited)
                    else:
                        self._score([number])
                finally:
                    if edited is not None:
                        edited.rollback()
                self._progress("editing", number + 1, len(numbers))
            if waiting.numbers:
                self._score(waiting.numbers, waiting)

    def all_at_once(self, *, as_one: bool) -> None:
        requests = [example.request for example in self.recorded.examples]
        with ExitStack() as stack:
            if as_one:
                stack.callback(self._edit(requests).rollback)
            for number in range(0 if as_one else len(requests)):
                edited = self._made(number)
                if edited is not None:
                    stack.callback(edited.rollback)
                self._progress("editing", number + 1, len(requests))
            self.answers = score(
                self.model,
                self.recorded,
                progress=lambda done: self._progress("scoring", done, len(self.recorded.questions)),
            )

    def _made(self, number: int) -> Edited | None:
        try:
            return self._edit([self.recorded.examples[number].request])
        except WorseError as error:
            self.refused[number] = str(error)
            return None

    def _score(self, requests: list[int], waiting: _Waiting | None = None) -> None:
        numbers = [n for n, one in enumerate(self.recorded.questions) if one.request in requests]
        attach = attach_nothing if waiting is None else waiting.attach
        self.answers |= answers_to(self.model, self.recorded, numbers, attach=attach)


class _Waiting:
    """Single edits, each attached for the texts of its own request only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.numbers: list[int] = []
        self._targets: dict[str, Target] = {}
        self._parts: dict[str, list[LowRankUpdate]] = {}

    def add(self, number: int, edited: Any) -> None:
        """Add the edit of the request with index `number`; None if it was refused."""
        self.numbers.append(number)
        if edited is None:
            return
        self._targets |= edited.targets
        for name, update in edited.updates.items():
            of = torch.full_like(update.request, number)
            self._parts.setdefault(name, []).append(
                LowRankUpdate(update.keys.detach(), update.values.detach(), of)
            )

    def attach(self, requests: Sequence[int]) -> AbstractContextManager[None]:
        updates = {
            name: LowRankUpdate(
                torch.cat([part.keys for part in parts]),
                torch.cat([part.values for part in parts]),
                torch.cat([part.request for part in parts]),
            )
            for name, parts in self._parts.items()
        }
        return attached(self._model, self._targets, updates, torch.tensor(requests))


def _is_low_rank(edited: Edited) -> bool:
    return isinstance(getattr(edited, "updates", None), dict) and hasattr(edited, "targets")
