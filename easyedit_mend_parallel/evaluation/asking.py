"""Prepares questions for a model: plain or in chat form, checked, in batches of similar length.

Has a tokenizer and cached hidden states, and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.evaluation.questions import HELD, UNRELATED, Question
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.chat import in_chat
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.forward.tokenizing import Tokenized

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Asker:
    """With `chat`, prompts go through the tokenizer's chat template. `trunk` has the hidden states
    below the edited weights, from which forward passes resume; with None the whole model runs."""

    tokenizer: Any
    chat: bool = False
    trunk: CachedTrunk | None = None
    _known: dict[Text, Tokenized] = field(default_factory=dict)

    def texts(self, model: Any) -> Texts:
        return Texts(
            model,
            self.tokenizer,
            trunk=self.trunk,
            special_tokens_in_labels=False,
            known=self._known,
        )

    def worded(self, question: Question) -> Question:
        """The question as the model reads it. Raises RequestError for a missing chat template."""
        if not self.chat or question.kind in (UNRELATED, HELD):
            return question
        prompt = in_chat(self.tokenizer, question.prompt)
        return replace(question, prompt=prompt, target=question.target.lstrip())

    def tokenized(self, model: Any, question: Question) -> Tokenized:
        return self.texts(model).tokenized(self.worded(question).text)

    def check(self, model: Any, questions: Sequence[Question]) -> None:
        """Raise RequestError for the first question that `model` cannot be asked."""
        room = context_of(model)
        for question in questions:
            found = self.tokenized(model, question)
            length = max(len(found.ids), len(found.labels))
            if length > room:
                raise RequestError(
                    f"{(question.prompt + question.target)[:200]!r} has {length} tokens, and the "
                    f"model's context has {room}: shorten it, or leave the request out"
                )

    def batches(
        self, model: Any, questions: Sequence[Question], numbers: Sequence[int], tokens: int
    ) -> Iterator[list[int]]:
        """The indices `numbers` of questions, grouped by length into batches of at most `tokens`
        tokens with padding. Held-out text has its own batches."""
        lengths = {n: len(self.tokenized(model, questions[n]).ids) for n in numbers}
        order = sorted(numbers, key=lambda n: (questions[n].kind == HELD, lengths[n]))
        part: list[int] = []
        for n in order:
            apart = part and (questions[n].kind == HELD) != (questions[part[-1]].kind == HELD)
            if part and (apart or (len(part) + 1) * lengths[n] > tokens):
                yield part
                part = []
            part.append(n)
        if part:
            yield part

    def prompt_and_answer(
        self, model: Any, question: Question
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of the prompt, and of the answer without special tokens."""
        found = self.tokenized(model, question)
        special = set(self.tokenizer.all_special_ids)
        answer = tuple(token for token in found.labels if token not in special)
        if model.config.is_encoder_decoder:
            return found.ids, answer
        end = len(found.ids)
        while found.ids[end - 1] in special and found.ids[end - 1] != answer[-1]:
            end -= 1  # an end-of-text token that the tokenizer appends to every text
        return found.ids[: end - len(answer)], answer


def context_of(model: Any) -> int:
    """The length of the model's context in tokens, from its config; very large if not given
    there."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit else NO_LIMIT
