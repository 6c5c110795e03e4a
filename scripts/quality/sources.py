"""Reads what the facts are made of from the files in data/: relations, their words, subjects and
sentences. Knows nothing of how facts are drawn; data/README.md is the card of those files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")
KINDS = (
    "person",
    "landmark",
    "company",
    "region",
    "book",
    "country",
    "city",
    "element",
    "dish",
    "animal",
    "state",
)
"""The kinds of subject, in the order in which they are divided among the parts."""
PARTS = ("train", "train_more", "train_wide", "validation", "test")
"""What a relation's `part` can be: the first part of the split that has it."""


@dataclass(frozen=True)
class Relation:
    """What is asked of a subject, in which words, and which objects may be the answer.

    Every wording has one `{}`, the subject's place. `prompt` and `rephrases` are for training where
    the relation is trained on, else for evaluation; `validation` and `test` are the wordings that
    only that part has. The larger training parts add `more_wordings` and `wide_wordings`.
    """

    name: str
    part: str
    kind: str
    objects: Sequence[str]
    prompt: str
    rephrases: Sequence[str]
    validation: str = ""
    test: str = ""
    more_objects: Sequence[str] = ()
    more_wordings: Sequence[str] = ()
    wide_wordings: Sequence[str] = ()

    @property
    def wordings(self) -> list[str]:
        """Every wording."""
        own = [self.prompt, *self.rephrases, *self.more_wordings, *self.wide_wordings]
        return own + [wording for wording in (self.validation, self.test) if wording]


@dataclass(frozen=True)
class Subjects:
    """The subjects of one kind; of the known ones (subject -> relation -> object) the truth is."""

    known: dict[str, dict[str, str]] = field(default_factory=dict)
    invented: Sequence[str] = ()


@dataclass(frozen=True)
class Grammar:
    """Patterns of sentences, with the words of each `[slot]`."""

    patterns: Sequence[str]
    slots: Mapping[str, Sequence[str]]


def rows(name: str) -> list[dict[str, Any]]:
    """The lines of a file of data/."""
    text = (DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def relations() -> dict[str, dict[str, Relation]]:
    """Part -> name -> relation.

    Raises:
        ValueError: a relation names a part, a kind or a list of objects that is not there, or a
            wording has not exactly one `{}`.
    """
    lists = {row["name"]: row["words"] for row in rows("objects.jsonl")}
    found: dict[str, dict[str, Relation]] = {part: {} for part in PARTS}
    for row in rows("relations.jsonl"):
        unknown = {*row["objects"], *row.get("more_objects", ())} - set(lists)
        if row["part"] not in PARTS or row["kind"] not in KINDS or unknown:
            raise ValueError(f"relation {row['name']!r}: no such part, kind or objects: {row}")
        for key in ("objects", "more_objects"):
            row[key] = [word for name in row.get(key, ()) for word in lists[name]]
        relation = Relation(**row)
        if wrong := [text for text in relation.wordings if text.count("{}") != 1]:
            raise ValueError(f"relation {relation.name!r}: not one {{}} in {wrong}")
        found[relation.part][relation.name] = relation
    return found


def subjects() -> dict[str, Subjects]:
    """Kind -> its subjects; of a kind without invented ones, every subject is known."""
    known: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in KINDS}
    for row in rows("known_subjects.jsonl") + rows("places.jsonl"):
        known[row["kind"]][row["name"]] = row["facts"]
    invented = {
        row["kind"]: [row["pattern"].format(*words) for words in product(*row["words"])]
        for row in rows("invented_names.jsonl")
    }
    return {kind: Subjects(known[kind], invented.get(kind, ())) for kind in KINDS}


def sentences() -> list[str]:
    """Sentences that no edit may change; none states a fact of a relation."""
    return [row["text"] for row in rows("sentences.jsonl")]


def grammar() -> Grammar:
    """What further such sentences are made of."""
    found = rows("grammar.jsonl")
    return Grammar(
        [row["pattern"] for row in found if "pattern" in row],
        {row["slot"]: row["words"] for row in found if "slot" in row},
    )
