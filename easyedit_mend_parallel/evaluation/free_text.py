"""What a text is worth that a model wrote by itself after a prompt: the answer first, and once;
how much it repeats; whether it comes to an end. Knows texts and token ids, and no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_STOP = re.compile(r"[.!?](?=[\s\"')\]]|$)|[。！？]|\n")
"""Where a text stops of itself: after a sentence, or at the end of a line."""


@dataclass(frozen=True)
class Judgement:
    """`first`: the text begins with the answer. `once`: that, and the answer comes no second time
    before the text's natural stop. `ends`: there is one, or an end-of-text token. `repetition`: the
    share of bigrams of tokens that were there before."""

    first: bool
    once: bool
    ends: bool
    repetition: float


def judged(text: str, answer: str, ids: Sequence[int], *, ended: bool) -> Judgement:
    """Judge `text`, whose tokens are `ids` (without the end-of-text token; `ended`: there was one).

    An answer is found as whole words: `Rome` does not stand in `Romeo`. The natural stop is the
    first end of a sentence or line behind the answer (the first of all where the answer does not
    begin the text), as users of generated text cut it (arXiv 2502.11177); an answer of several
    sentences is so left whole.
    """
    said, answer = text.lstrip(), answer.strip()
    found = list(_places(said, answer))
    first = found[:1] == [0]
    behind = len(answer) if first else 0
    # An answer that has its full stop itself ends its sentence.
    stop = _STOP.search(said, max(0, behind - 1)) if behind else _STOP.search(said)
    end = stop.end() if stop else len(said)
    once = first and sum(place < end for place in found) == 1
    return Judgement(first, once, stop is not None or ended, repetition(ids))


def repetition(ids: Sequence[int]) -> float:
    """The share of the bigrams of `ids` that were there before; 0 where there is no bigram."""
    bigrams = list(pairwise(ids))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def answer_tokens(pieces: Iterable[str], answer: str) -> int:
    """How many tokens a text begins with until its answer is whole: the n-th of `pieces` is the
    text of its first n tokens."""
    answer, many = answer.strip(), 0
    for piece in pieces:
        many += 1
        if piece.lstrip().startswith(answer):
            break
    return many


def _places(text: str, answer: str) -> list[int]:
    """Where `answer` begins in `text` as whole words."""
    found, at = [], text.find(answer)
    while at >= 0:
        end = at + len(answer)
        if not (_joined(text[at - 1 : at], answer[0]) or _joined(answer[-1], text[end : end + 1])):
            found.append(at)
        at = text.find(answer, at + 1)
    return found


def _joined(one: str, other: str) -> bool:
    """Whether two neighbouring characters are of one word. Letters without case (Chinese, Thai)
    are words of their own, since many such scripts write no spaces."""
    return bool(one and other) and all(
        char.isalnum() and unicodedata.category(char) != "Lo" for char in (one, other)
    )
