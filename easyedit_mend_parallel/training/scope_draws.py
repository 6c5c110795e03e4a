"""Draws what a scope is trained on in one step: similar requests, and texts about some of them.

Knows facts and their wordings. Knows no hidden state.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_mend_parallel.evaluation.data import Example

FACTS_OF_A_SUBJECT = 6
"""How many questions about one subject a step compares at most."""


@dataclass(frozen=True)
class AskedTexts:
    """R requests and Q texts, by their wordings. `same` (Q, R) is true where the text asks what the
    request asks, of whatever subject; `near` (Q, R) where it asks something else of the same
    subject."""

    requests: list[str]
    texts: list[str]
    same: Tensor
    near: Tensor


class ScopeDraws:
    """Draws from `examples` and `unrelated` texts; a step has `facts` requests and `n_unrelated` of
    those texts, and a fact its first `rephrases` rephrases."""

    def __init__(
        self,
        examples: Sequence[Example],
        unrelated: Sequence[str],
        rng: random.Random,
        *,
        facts: int,
        n_unrelated: int,
        rephrases: int,
    ) -> None:
        self._examples, self._unrelated, self._rng = examples, list(unrelated), rng
        self._facts, self._rephrases = facts, rephrases
        self._n_unrelated = min(n_unrelated, len(self._unrelated))
        self._like: list[dict[str, list[int]]] = [{}, {}, {}]
        for number, example in enumerate(examples):
            for kind, names in enumerate(_names(example)):
                for name in names:
                    self._like[kind].setdefault(name, []).append(number)
        self._with_subject = [n for n, example in enumerate(examples) if example.subject]
        asked = [
            [number for number in facts if examples[number].relation is not None]
            for facts in self._like[0].values()
        ]
        self._several = [f for f in asked if len({examples[n].relation for n in f}) > 1]

    def step(self) -> tuple[list[str], list[str], list[int]]:
        """Prompts of R requests, Q texts, and the index of each text's request (R: none)."""
        rng, examples = self._rng, self._examples
        half = max(1, min(self._facts, len(examples)) // 2)
        chosen = dict.fromkeys(rng.sample(range(len(examples)), half))
        for number in list(chosen):
            chosen.setdefault(self._alike(number, (0.5, 0.8)))
        by_prompt: dict[str, int] = {}
        for number in chosen:
            by_prompt.setdefault(examples[number].request.prompt, number)
        members = list(by_prompt.values())
        facts = {_fact(examples[number]) for number in members}
        queries, answers = [], []
        for place, number in enumerate(members):
            queries.append(self._wording(number))
            answers.append(place)
        for _ in range(self._facts):
            other = self._alike(rng.choice(members), (0.35, 0.7))
            if _fact(examples[other]) not in facts:
                queries.append(self._wording(other))
                answers.append(len(members))
        queries += rng.sample(self._unrelated, self._n_unrelated)
        answers += [len(members)] * self._n_unrelated
        return list(by_prompt), queries, answers

    @property
    def has_relations(self) -> bool:
        """Whether the facts have two or more relations."""
        return len(self._like[2]) > 1

    @property
    def has_subjects(self) -> bool:
        return bool(self._with_subject)

    def relations(self) -> AskedTexts:
        """Half of the requests are several facts each of some subjects, the others facts of other
        relations. The texts are a wording of each, or of another fact of its relation, and then
        unrelated ones."""
        rng, examples, by_relation = self._rng, self._examples, self._like[2]
        chosen: dict[int, None] = {}
        for facts in rng.sample(self._several, min(len(self._several), self._facts // 2)):
            if len(chosen) < self._facts // 2:
                chosen |= dict.fromkeys(rng.sample(facts, min(FACTS_OF_A_SUBJECT, len(facts))))
        names = rng.sample(sorted(by_relation), min(self._facts // 2, len(by_relation)))
        chosen |= dict.fromkeys(rng.choice(by_relation[name]) for name in names)
        requests = [self._wording(number) for number in chosen]
        asked, texts = [], []
        for number, request in zip(chosen, requests, strict=True):
            alike = by_relation[examples[number].relation or ""]
            other = number if rng.random() < 0.5 else rng.choice(alike)
            asked.append(other)
            texts.append(self._wording(other, but=request))
        texts += rng.sample(self._unrelated, self._n_unrelated)
        about = [(examples[n].subject, examples[n].relation) for n in chosen]
        same = torch.zeros(len(texts), len(requests), dtype=torch.bool)
        near = same.clone()
        for place, number in enumerate(asked):
            subject, relation = examples[number].subject, examples[number].relation
            same[place] = torch.tensor([relation == one for _, one in about])
            near[place] = torch.tensor([subject == one for one, _ in about]) & ~same[place]
        return AskedTexts(requests, texts, same, near)

    def subjects(self) -> list[tuple[str, str]]:
        """Texts about facts, each with the subject that it names."""
        numbers = self._rng.choices(self._with_subject, k=self._facts)
        return [(self._wording(number), self._examples[number].subject or "") for number in numbers]

    def _alike(self, number: int, shares: tuple[float, float]) -> int:
        """A fact with the same subject, with a word of the subject, or with the same relation."""
        u = self._rng.random()
        kind = 0 if u < shares[0] else 1 if u < shares[1] else 2
        names = _names(self._examples[number])[kind]
        pool = self._like[kind][self._rng.choice(names)] if names else range(len(self._examples))
        return self._rng.choice(list(pool) if len(pool) < 64 else pool)

    def _wording(self, number: int, but: str | None = None) -> str:
        """A wording of a fact, if it has several another one than `but`."""
        example = self._examples[number]
        wordings = [example.request.prompt, *example.rephrases[: self._rephrases]]
        return self._rng.choice([one for one in wordings if one != but] or wordings)


def _names(example: Example) -> tuple[list[str], list[str], list[str]]:
    """The subject of a fact, the words of its subject, and its relation."""
    subject = example.subject or ""
    relation = [] if example.relation is None else [example.relation]
    return ([subject] if subject else []), subject.split(), relation


def _fact(example: Example) -> tuple[str, str]:
    return example.subject or example.request.prompt, example.relation or ""
