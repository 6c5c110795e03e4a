"""The split of facts is the one that was fixed, and its parts share nothing that they must not."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest

from easyedit_mend_parallel.demo.facts import DEMO_FACTS
from easyedit_mend_parallel.evaluation.data import Example, read_examples

SCRIPTS = Path(__file__).parents[1] / "scripts" / "quality"
MODULES = ("facts", "larger", "sources", "zsre")
TRAINING, JUDGED = ("train", "train_more", "train_wide"), ("validation", "test")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script that writes the split, which is no part of the package."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module("facts")
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def sources(script: ModuleType) -> ModuleType:
    """What reads the files that the facts are made of."""
    return script.sources


@pytest.fixture(scope="module")
def files(script: ModuleType) -> dict[str, bytes]:
    """Name -> content of the split."""
    return script.files()


@pytest.fixture(scope="module")
def read(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[Example], list[str]]]:
    """Name of a part -> its facts and its texts, every training part by itself."""
    folder = tmp_path_factory.mktemp("split")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {part: read_examples(folder / f"{part}.jsonl") for part in (*TRAINING, *JUDGED)}


@pytest.fixture(scope="module")
def parts(
    read: dict[str, tuple[list[Example], list[str]]],
) -> dict[str, tuple[list[Example], list[str]]]:
    """The three parts: all that any training part has is in "train"."""
    facts = [fact for part in TRAINING for fact in read[part][0]]
    texts = [text for part in TRAINING for text in read[part][1]]
    return {"train": (facts, texts), **{part: read[part] for part in JUDGED}}


def test_the_split_is_the_one_that_was_fixed(files: dict[str, bytes]) -> None:
    fixed = json.loads((SCRIPTS / "split.json").read_text(encoding="utf-8"))

    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == fixed[
        "sha256"
    ]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("relations.jsonl", {"kind": "river"}, "'birthplace': no such part, kind or objects"),
        ("relations.jsonl", {"objects": ["rivers"]}, "'birthplace': no such part, kind or objects"),
        ("relations.jsonl", {"test": "It began in"}, "'birthplace': not one {} in"),
    ],
)
def test_a_relation_that_asks_for_what_is_not_there_is_refused(
    sources: ModuleType,
    file: str,
    change: dict[str, object],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = shutil.copytree(sources.DATA, tmp_path / "data")
    rows = [row | change if row["name"] == "birthplace" else row for row in sources.rows(file)]
    (copied / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sources, "DATA", copied)

    with pytest.raises(ValueError, match=re.escape(says)):
        sources.relations()


def test_no_two_parts_share_a_subject_or_a_text_that_must_stay(
    parts: dict[str, tuple[list[Example], list[str]]],
) -> None:
    subjects, texts = [], []
    for examples, beside in parts.values():
        subjects.append({str(example.subject).lower() for example in examples})
        texts.append(set(beside) | {held.prompt for e in examples for held in e.unrelated})

    for one, other in (*combinations(subjects, 2), *combinations(texts, 2)):
        assert not one & other
    assert len(DEMO_FACTS) >= 5
    assert not set.union(*subjects) & {fact.subject.lower() for fact in DEMO_FACTS}


def shapes(examples: list[Example], *, rephrases: bool) -> set[str]:
    """The texts with their subject taken out: the templates, some of them after a sentence."""
    return {
        text.replace(str(e.subject), "").replace(str(e.subject).replace("the ", "The "), "")
        for e in examples
        for text in (e.rephrases if rephrases else (e.request.prompt, *e.rephrases))
    }


def test_evaluation_asks_in_words_and_of_relations_that_training_never_saw(
    parts: dict[str, tuple[list[Example], list[str]]],
) -> None:
    trained = shapes(parts["train"][0], rephrases=False)
    judged = {part: shapes(parts[part][0], rephrases=True) for part in JUDGED}
    new = {
        part: {e.relation for e in parts[part][0] if e.split == "new relations"} for part in judged
    }

    assert not trained & (judged["validation"] | judged["test"])
    assert not judged["validation"] & judged["test"]
    assert not new["validation"] & new["test"]
    assert not {e.relation for e in parts["train"][0]} & (new["validation"] | new["test"])


def test_no_wording_of_evaluation_is_nearly_one_that_training_has_for_the_relation(
    parts: dict[str, tuple[list[Example], list[str]]],
) -> None:
    def of(relation: str | None, part: str, rephrases: bool) -> list[set[str]]:
        examples = [e for e in parts[part][0] if e.relation == relation]
        return [set(text.split()) for text in shapes(examples, rephrases=rephrases)]

    for relation in {e.relation for e in parts["train"][0]}:
        trained = of(relation, "train", rephrases=False)
        for judged in of(relation, "validation", True) + of(relation, "test", True):
            assert all(len(judged & one) < 0.7 * len(judged | one) for one in trained), judged


def test_no_wording_that_the_widest_part_adds_is_nearly_one_of_evaluation(
    read: dict[str, tuple[list[Example], list[str]]],
) -> None:
    def words(texts: set[str]) -> list[set[str]]:
        return [set(re.findall(r"[\w'-]+", text.lower())) for text in texts]

    wide = read["train_wide"][0]
    added = shapes(wide, rephrases=False) - shapes(read["train"][0], rephrases=False)
    judged: set[str] = set()
    for part in JUDGED:
        new = [e for e in read[part][0] if e.split == "new relations"]
        judged |= shapes(read[part][0], rephrases=True) | shapes(new, rephrases=False)

    assert len({e.relation for e in wide}) == 50
    assert all(len(e.rephrases) == 5 for e in wide)
    known = words(judged)
    for one in words(added):
        assert all(len(one & other) < 0.6 * len(one | other) for other in known), one


def test_neighbours_of_evaluation_are_about_subjects_that_no_edit_of_it_has(
    parts: dict[str, tuple[list[Example], list[str]]],
) -> None:
    edited = {str(e.subject) for examples, _ in parts.values() for e in examples}
    asked = [held.prompt for part in ("validation", "test") for e in parts[part][0]
             for held in e.neighbours]  # fmt: skip

    assert all(len(e.neighbours) == 2 for part in ("validation", "test") for e in parts[part][0])
    for prompt in set(asked):
        words = f" {prompt} ".replace('"', " ").replace(",", " ").replace("?", " ")
        assert not [subject for subject in edited if f" {subject} " in words], prompt
