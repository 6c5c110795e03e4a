"""Finds the words of a prompt that name its subject, for a request that does not name it.

Reads hidden states with a trained head. Knows token ids and words, and no model or tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from easyedit_mend_parallel.weights.scope import Scope, words_of


def found_subject(
    scope: Scope, states: Tensor, ids: Sequence[int], read: Callable[[list[int]], str]
) -> tuple[str, ...]:
    """The words of the subject of a prompt with the hidden `states` (T, D) and the token `ids` (T);
    `read` gives the text of token ids. Empty if `scope` has no subject head, or finds none.

    They are the run of words with the largest sum of logits. A word has the largest logit of its
    tokens.
    """
    if scope.subject is None:
        return ()
    words, places = words_of(read(list(ids))), word_of_each_token(ids, read)
    logits = scope.subject_logits(states).tolist()
    by_word = [-torch.inf] * len(words)
    for place, logit in zip(places, logits, strict=True):
        if place is not None:
            by_word[place] = max(by_word[place], logit)
    best, chosen, start, total = 0.0, (0, 0), 0, 0.0
    for end, logit in enumerate(by_word, 1):
        total += logit
        if total <= 0.0:
            start, total = end, 0.0
        elif total > best:
            best, chosen = total, (start, end)
    return words[slice(*chosen)]


def word_of_each_token(ids: Sequence[int], read: Callable[[list[int]], str]) -> list[int | None]:
    """For each token, the index of the word (of `words_of`) that it begins or goes on with; None
    for a token that adds nothing to a word."""
    found: list[int | None] = []
    before: tuple[str, ...] = ()
    for end in range(1, len(ids) + 1):
        words = words_of(read(list(ids[:end])))
        found.append(len(words) - 1 if words and words != before else None)
        before = words
    return found
