"""Prepares the data of a training run: the form of its requests, and texts of at most `max_length`.

An example with a longer text is left out, and a log message gives the number of such examples.
Texts are never cut, since a cut text would have other labels. Knows no files.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from easyedit_mend_parallel.errors import DataError
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.forward.chat import chat_request, in_chat
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.forward.texts import Text, Texts, TooLong
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Facts to train on and to evaluate on, each with unrelated texts."""

    train: Sequence[Example]
    unrelated: Sequence[str]
    validation: Sequence[Example] = ()
    validation_unrelated: Sequence[str] = ()

    def worded(self, tokenizer: Any, hparams: MENDParallelTrainingHparams) -> Data:
        """The data in the form that `hparams` name: with `target_space` for requests without their
        own, and with `chat` a share of the facts in chat form, sampled by the seed.

        Facts in chat form have their own split. Raises RequestError for a tokenizer without a
        template.
        """

        def put(examples: Sequence[Example]) -> list[Example]:
            found = []
            for number, example in enumerate(examples):
                [request] = as_requests(example.request, hparams.target_space)
                drawn = random.Random(f"{hparams.seed}/chat/{number}").random()
                example = replace(example, request=request)
                if hparams.chat and drawn < hparams.chat_share:
                    example = chat_example(tokenizer, example)
                found.append(example)
            return found

        return replace(self, train=put(self.train), validation=put(self.validation))


def chat_example(tokenizer: Any, example: Example) -> Example:
    """The example with its request, rephrases and neighbours in chat form.

    Unrelated texts stay. Raises RequestError for a tokenizer without a chat template.
    """
    return replace(
        example,
        request=chat_request(tokenizer, example.request),
        rephrases=tuple(in_chat(tokenizer, prompt) for prompt in example.rephrases),
        neighbours=tuple(
            replace(one, prompt=in_chat(tokenizer, one.prompt)) for one in example.neighbours
        ),
        split=f"{example.split}, chat",
    )


def fitting_data(data: Data, texts: Texts) -> Data:
    """The examples of `data` whose texts have at most `texts.max_length` tokens.

    Raises DataError if a part has no such example, and RequestError for a target without any
    token.
    """
    return Data(
        _fitting(texts, data.train, "training examples"),
        [text for text in data.unrelated if _fits(texts, Text(text))],
        _fitting(texts, data.validation, "evaluation examples"),
        [text for text in data.validation_unrelated if _fits(texts, Text(text))],
    )


def _fits(texts: Texts, text: Text) -> bool:
    try:
        texts.tokenized(text)
    except TooLong:
        return False
    return True


def _fitting(texts: Texts, examples: Sequence[Example], what: str) -> list[Example]:
    kept: list[Example] = []
    left_out: list[Example] = []
    for example in examples:
        prompts = (example.request.prompt, *example.rephrases)
        of_target = [Text(p, example.request.target_after(p)) for p in prompts]
        others = [Text(h.prompt, h.target) for h in (*example.neighbours, *example.unrelated)]
        fits = all(_fits(texts, text) for text in (*of_target, *others))
        (kept if fits else left_out).append(example)
    if left_out:
        log.warning(
            "%d of %d %s are left out: a text has more than max_length: %s tokens (the first: %r)",
            len(left_out),
            len(examples),
            what,
            texts.max_length,
            left_out[0].request.prompt,
        )
    if examples and not kept:
        raise DataError(
            f"all {len(examples)} {what} have a text of more than max_length: {texts.max_length} "
            "tokens: raise max_length"
        )
    return kept
