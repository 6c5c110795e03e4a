"""Counterfactual facts and plain sentences to train the demo's archive; one seed, one set of facts.

Knows neither model nor tokenizer: that targets are one token long was checked against SmolLM2's.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "quality"))

from relations import HELD_OUT, TRAINING, Relation
from sentences import EVERYDAY as UNRELATED  # noqa: F401
from words import (
    COMPANY_KINDS,
    COMPANY_WORDS,
    COUNTRIES,
    FAMILY_NAMES,
    GIVEN_NAMES,
    LANDMARK_KINDS,
    LANDMARK_NAMES,
    LANDMARK_WORDS,
    REGION_KINDS,
    REGION_NAMES,
    listed,
)

#: Targets that SmolLM2's tokenizer cuts in two or more; `build` leaves them out unless asked.
MULTI_TOKEN = frozenset(
    listed(
        "Bangkok, Jakarta, Lagos, Osaka, Punjabi, Gujarati, banker, plumber, badminton, softball, "
        "polo, cello, clarinet, saxophone, zoology, meteorology, Sikhism, Jainism, Oceania, "
        "pianos, crimson"
    )
)

#: Every n-th object of a list is kept from training, for the split "new subjects and objects".
HELD_OBJECT_EVERY = 6


@dataclass(frozen=True)
class Fact:
    """One request for an edit, with the prompts that judge it.

    Attributes:
        relation: name of the relation, a key of `TRAINING` or `HELD_OUT`.
        subject: the subject, as it stands in the prompts.
        prompt: the text after which the edited model is to say `target`.
        target: the new object, with a leading space.
        rephrases: the relation's training templates with this subject.
        unseen_rephrase: a template never used in training, with this subject.
        neighbours: locality prompts: the same relation asked of other subjects, whose answers must
            not move. For a training fact these are other training subjects; for an evaluation
            fact, subjects that training never saw.
        single_token: whether `target` is one token for SmolLM2's tokenizer.
    """

    relation: str
    subject: str
    prompt: str
    target: str
    rephrases: list[str]
    unseen_rephrase: str
    neighbours: list[str] = field(default_factory=list)
    single_token: bool = True


def _subjects(rng: random.Random) -> dict[str, list[str]]:
    """All subjects by kind, each list in an order of `rng`'s choosing."""
    pools = {
        "person": [f"{a} {b}" for a in GIVEN_NAMES for b in FAMILY_NAMES],
        "landmark": [
            f"{a} {b} {c}" for a in LANDMARK_WORDS for b in LANDMARK_NAMES for c in LANDMARK_KINDS
        ],
        "region": [f"{a} {b}" for a in REGION_NAMES for b in REGION_KINDS],
        "company": [f"{a} {b}" for a in COMPANY_WORDS for b in COMPANY_KINDS],
        "country": list(COUNTRIES),
    }
    for pool in pools.values():
        rng.shuffle(pool)
    return pools


def _fill(template: str, subject: str) -> str:
    """The template with its subject, its first letter a capital ("the Netherlands" may lead)."""
    text = template.format(subject)
    return text[0].upper() + text[1:]


def _objects(relation: Relation, held: bool | None, multi_token: bool) -> list[str]:
    """The relation's objects: those held from training (True), the others (False), all (None)."""
    kept = [word for word in relation.objects if multi_token or word not in MULTI_TOKEN]
    if held is None:
        return kept
    last = HELD_OBJECT_EVERY - 1
    return [word for i, word in enumerate(kept) if (i % HELD_OBJECT_EVERY == last) == held]


def _facts(
    relations: dict[str, Relation],
    count: int,
    subjects: dict[str, list[str]],
    neighbour_subjects: dict[str, list[str]],
    neighbours_per_fact: int,
    held: bool | None,
    multi_token: bool,
    rng: random.Random,
) -> list[Fact]:
    """`count` facts: relations and subjects take turns, and no (prompt, target) comes twice."""
    facts: list[Fact] = []
    names = list(relations)
    next_subject = dict.fromkeys(subjects, 0)
    asked: set[tuple[str, str]] = set()
    for i in range(count):
        name = names[i % len(names)]
        relation = relations[name]
        pool = subjects[relation.kind]
        subject = pool[next_subject[relation.kind] % len(pool)]
        next_subject[relation.kind] += 1
        prompt = _fill(relation.prompt, subject)
        truth = None if relation.truth is None else COUNTRIES[subject][relation.truth]
        candidates = [
            word
            for word in _objects(relation, held, multi_token)
            if word != truth and (prompt, word) not in asked
        ]
        if not candidates:
            raise ValueError(
                f"no object is left for {prompt!r}; "
                f"ask for fewer than {count} facts or add objects to {name!r}"
            )
        target = rng.choice(candidates)
        asked.add((prompt, target))
        others = [other for other in neighbour_subjects[relation.kind] if other != subject]
        templates = (relation.prompt, *relation.rephrases)
        facts.append(
            Fact(
                relation=name,
                subject=subject,
                prompt=prompt,
                target=f" {target}",
                rephrases=[_fill(template, subject) for template in relation.rephrases],
                unseen_rephrase=_fill(relation.unseen, subject),
                neighbours=[
                    _fill(rng.choice(templates), other)
                    for other in rng.sample(others, min(neighbours_per_fact, len(others)))
                ],
                single_token=target not in MULTI_TOKEN,
            )
        )
    rng.shuffle(facts)
    return facts


def build(
    n_train: int = 2000,
    n_eval: int = 48,
    seed: int = 0,
    *,
    neighbours_per_fact: int = 8,
    multi_token: bool = False,
) -> tuple[list[Fact], dict[str, list[Fact]]]:
    """Facts to train on, and three splits to evaluate on.

    Args:
        n_train: number of training facts, spread evenly over the relations of `TRAINING`.
        n_eval: number of facts in each evaluation split.
        seed: the same seed gives the same facts, in the same order.
        neighbours_per_fact: locality prompts that each fact carries.
        multi_token: also use the targets of `MULTI_TOKEN`.

    Returns:
        The training facts; and by name the splits "new subjects" (relations and objects of
        training), "new subjects and objects" (relations of training) and "new relations" (those of
        `HELD_OUT`, any object). Three sets of subjects are disjoint: training's (its neighbours'
        among them), evaluation's, and its neighbours'.

    Raises:
        ValueError: more facts are asked for than subjects and objects allow.
    """
    rng = random.Random(seed)
    train: dict[str, list[str]] = {}
    evaluation: dict[str, list[str]] = {}
    beside: dict[str, list[str]] = {}
    for kind, pool in _subjects(rng).items():
        held = min(200, len(pool) // 4)  # of 109 countries, 13 to edit and 13 beside
        train[kind], rest = pool[2 * (held // 2) :], pool[: 2 * (held // 2)]
        evaluation[kind], beside[kind] = rest[: held // 2], rest[held // 2 :]
    facts = _facts(TRAINING, n_train, train, train, neighbours_per_fact, False, multi_token, rng)
    splits = {
        "new subjects": _facts(
            TRAINING, n_eval, evaluation, beside, neighbours_per_fact, False, multi_token, rng
        ),
        "new subjects and objects": _facts(
            TRAINING, n_eval, evaluation, beside, neighbours_per_fact, True, multi_token, rng
        ),
        "new relations": _facts(
            HELD_OUT, n_eval, evaluation, beside, neighbours_per_fact, None, multi_token, rng
        ),
    }
    return facts, splits
