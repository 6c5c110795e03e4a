"""Prompts that name a fact's subject nearly, or by a part of its name: for `scopes.py`.

Knows words, and no model.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from batch_measures import Fact

SHORTEST = 4
"""The least length of a word that is misspelt or stands for the whole name."""


def near_names(fact: Fact, others: Sequence[str], rng: random.Random) -> list[str]:
    """The fact's prompt about somebody else: a letter of its subject is another one, and a word of
    it is that of one of `others`, if one has as many words."""
    subject = fact.subject or ""
    words = subject.split()
    if not words or subject not in fact.prompt:
        return []
    names = []
    longest = max(range(len(words)), key=lambda place: len(words[place]))
    if len(words[longest]) >= SHORTEST:
        names.append(_with(words, longest, _misspelt(words[longest], rng)))
    alike = [one.split() for one in others if len(one.split()) == len(words) > 1]
    if alike:
        place = rng.randrange(len(words))
        word = rng.choice(alike)[place]
        if word.casefold() != words[place].casefold():
            names.append(_with(words, place, word))
    known = {one.casefold() for one in others}
    return [fact.prompt.replace(subject, name) for name in names if name.casefold() not in known]


def aliases(fact: Fact) -> list[str]:
    """The fact's prompt with the last word of its subject's name alone."""
    subject = fact.subject or ""
    words = subject.split()
    if len(words) < 2 or len(words[-1]) < SHORTEST or subject not in fact.prompt:
        return []
    return [fact.prompt.replace(subject, words[-1])]


def _with(words: Sequence[str], place: int, word: str) -> str:
    return " ".join([*words[:place], word, *words[place + 1 :]])


def _misspelt(word: str, rng: random.Random) -> str:
    """The word with another letter or digit in place of one that is not its first."""
    place = rng.randrange(1, len(word))
    letters = string.digits if word[place].isdigit() else string.ascii_lowercase
    letter = rng.choice([one for one in letters if one != word[place].lower()])
    return word[:place] + letter + word[place + 1 :]
