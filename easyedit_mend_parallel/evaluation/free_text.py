"""Judges text that a model wrote after a prompt: whether the answer comes first and only once, how
much the text repeats, and whether it ends. Knows texts and token ids, and no model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_STOP = re.compile(r"[.!?](?=[\s\"')\]]|$)|[。！？]|\n")
"""The natural stops of a text: the end of a sentence or of a line."""


@dataclass(frozen=True)
class Judgement:
    """The judgement of one text.

    `first`: the text begins with the answer. `once`: it also does not repeat the answer before its
    natural stop. `ends`: it has a natural stop or an end-of-text token. `repetition`: the share of
    its token bigrams that occurred before in it."""

    first: bool
    once: bool
    ends: bool
    repetition: float


def judged(text: str, answer: str, ids: Sequence[int], *, ended: bool) -> Judgement:
    """Judge `text`, whose tokens are `ids` (without the end-of-text token; `ended`: there was one).

    An answer is matched as whole words: `Romeo` does not contain `Rome`. The natural stop is the
    first end of a sentence or line after the answer, or of the text if it does not begin with the
    answer, as users of generated text cut it (arXiv 2502.11177). An answer of several sentences
    therefore stays whole.
    """
    said, answer = text.lstrip(), answer.strip()
    found = list(_places(said, answer))
    first = found[:1] == [0]
    behind = len(answer) if first else 0
    # An answer that includes its full stop ends its sentence.
    stop = _STOP.search(said, max(0, behind - 1)) if behind else _STOP.search(said)
    end = stop.end() if stop else len(said)
    once = first and sum(place < end for place in found) == 1
    return Judgement(first, once, stop is not None or ended, repetition(ids))


def repetition(ids: Sequence[int]) -> float:
    """The share of the bigrams of `ids` that occurred before; 0 without any bigram."""
    bigrams = list(pairwise(ids))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def answer_tokens(pieces: Iterable[str], answer: str) -> int:
    """The number of tokens at the start of a text that contain its answer. The n-th of `pieces` is
    the text of the first n tokens."""
    answer, many = answer.strip(), 0
    for piece in pieces:
        many += 1
        if piece.lstrip().startswith(answer):
            break
    return many


def _places(text: str, answer: str) -> list[int]:
    """The offsets in `text` where `answer` begins as whole words."""
    found, at = [], text.find(answer)
    while at >= 0:
        end = at + len(answer)
        if not (_joined(text[at - 1 : at], answer[0]) or _joined(answer[-1], text[end : end + 1])):
            found.append(at)
        at = text.find(answer, at + 1)
    return found


def _joined(one: str, other: str) -> bool:
    """Whether two adjacent characters belong to one word. Letters without case (Chinese, Thai) are
    separate words, since many such scripts have no spaces."""
    return bool(one and other) and all(
        char.isalnum() and unicodedata.category(char) != "Lo" for char in (one, other)
    )
