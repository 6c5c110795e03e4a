"""Samples the data of each training step: its examples, and the texts that test an edit.

A sample depends only on the run's seed, the step, and the example's index in the step. A resumed
run therefore has the samples of an uninterrupted one, and several processes together have those of
one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from easyedit_mend_parallel.errors import DataError
from easyedit_mend_parallel.evaluation.data import Example, LocalityText

PROMPT_SHARE = 0.5
"""How often an edit is also tested on its own prompt, besides a rephrase."""


@dataclass(frozen=True)
class Sample:
    """One example of a step: texts that must give its target text, and texts that must not change.

    `seed` is for further random choices (the positions of a text that are compared).
    """

    example: Example
    prompts: tuple[str, ...]
    locality: tuple[LocalityText, ...]
    seed: str


class Sampler:
    """Samples `examples`, `per_step` at a time, in a new order in each epoch.

    Each example has `locality_examples` texts that must not change. A fraction `neighbour_share` of
    them are neighbours: the example's own, or else prompts of other examples of its relation about
    another subject. The rest are unrelated texts: the example's own, or one of `unrelated`. If
    there are none of one kind, the other kind is used.

    Raises DataError if there are fewer examples than a step needs, or no text that must not change
    for an example.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        unrelated: Sequence[str],
        *,
        per_step: int,
        neighbour_share: float,
        locality_examples: int = 1,
        seed: int,
    ) -> None:
        if len(examples) < per_step:
            raise DataError(
                f"there are {len(examples)} examples to train on and a step takes {per_step}: give "
                "more, or lower batch_size or accumulate_bs"
            )
        self.examples = examples
        self.unrelated = unrelated
        self.per_step = per_step
        self.steps_per_epoch = len(examples) // per_step
        self._neighbour_share = neighbour_share
        self._locality_examples = locality_examples
        self._seed = seed
        self._alike: dict[str, list[Example]] = {}
        for example in examples:
            if example.relation is not None:
                self._alike.setdefault(example.relation, []).append(example)
        self._order: tuple[int, list[int]] = (-1, [])
        for number, example in enumerate(examples):
            if not self._kinds(example):
                raise DataError(
                    f"example {number} ({example.request.prompt!r}) has no text that must not "
                    "change: give it neighbours or unrelated texts, or its relation and subject, "
                    "or add lines with unrelated texts"
                )

    def step(self, number: int) -> list[Sample]:
        """The examples of step `number` (from 0), the same in every call."""
        epoch, index = divmod(number, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = list(range(len(self.examples)))
            random.Random(f"{self._seed}/epoch {epoch}").shuffle(order)
            self._order = (epoch, order)
        start = index * self.per_step
        return [
            self._sample(self.examples[index], f"{self._seed}/{number}/{offset}")
            for offset, index in enumerate(self._order[1][start : start + self.per_step])
        ]

    def drawn(self, steps: int) -> Iterator[Sample]:
        """The samples of the first `steps` steps, one after the other."""
        return (sample for number in range(steps) for sample in self.step(number))

    def _sample(self, example: Example, seed: str) -> Sample:
        rng = random.Random(seed)
        own = example.request.prompt
        prompts = [rng.choice(example.rephrases)] if example.rephrases else [own]
        if rng.random() < PROMPT_SHARE and own not in prompts:
            prompts.append(own)
        locality = tuple(self._locality(example, rng) for _ in range(self._locality_examples))
        return Sample(example, tuple(prompts), locality, seed)

    def _locality(self, example: Example, rng: random.Random) -> LocalityText:
        """One text that must not change."""
        kinds = self._kinds(example)
        wish = "neighbour" if rng.random() < self._neighbour_share else "unrelated"
        kind = wish if wish in kinds else kinds[0]
        return self._neighbour(example, rng) if kind == "neighbour" else self._other(example, rng)

    def _kinds(self, example: Example) -> list[str]:
        """The kinds of texts that must not change which exist for an example."""
        alike = self._alike.get(example.relation or "", ())
        neighbours = example.neighbours or (
            example.subject is not None and any(e.subject != example.subject for e in alike)
        )
        unrelated = example.unrelated or self.unrelated
        found = (("neighbour", neighbours), ("unrelated", unrelated))
        return [kind for kind, there in found if there]

    def _neighbour(self, example: Example, rng: random.Random) -> LocalityText:
        if example.neighbours:
            return rng.choice(example.neighbours)
        alike = self._alike[example.relation or ""]
        other = rng.choice(alike)
        while other.subject == example.subject:
            other = rng.choice(alike)
        return LocalityText(rng.choice((other.request.prompt, *other.rephrases)))

    def _other(self, example: Example, rng: random.Random) -> LocalityText:
        return (
            rng.choice(example.unrelated)
            if example.unrelated
            else LocalityText(rng.choice(self.unrelated))
        )
