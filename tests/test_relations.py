"""The facts about subjects are those on which the pair that ships was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "scripts" / "relations"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    folder = tmp_path_factory.mktemp("relations")
    command = [sys.executable, str(FOLDER / "relations.py"), str(folder), "--check"]
    subprocess.run(command, check=True, capture_output=True)
    return {
        path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted(folder.iterdir())
    }


def test_they_are_the_files_of_the_split(written: dict[str, list[dict[str, object]]]) -> None:
    split = json.loads((FOLDER / "split.json").read_text("utf-8"))
    assert {name: len(rows) for name, rows in written.items()} == {
        name: about["facts"] for name, about in split.items()
    }


def test_no_text_is_in_both_parts_and_a_prompt_names_its_subject(
    written: dict[str, list[dict[str, object]]],
) -> None:
    train, validation = (
        {
            text
            for name, rows in written.items()
            for row in rows
            for text in (row["prompt"], *row["rephrases"])  # type: ignore[misc]
            if name.startswith(part)
        }
        for part in ("train", "validation")
    )
    assert train
    assert validation
    assert not train & validation
    for rows in written.values():
        for row in rows:
            assert str(row["subject"]).lower() in str(row["prompt"]).lower()


def test_answered_facts_have_answers_of_their_relation(
    written: dict[str, list[dict[str, object]]],
) -> None:
    years = [row for row in written["train_answered.jsonl"] if row["relation"] == "founded"]
    assert years
    assert all(str(row["target_new"]).isdigit() for row in years)
    filled = [str(row["target_new"]) for row in written["train_answered.jsonl"]]
    assert not any(mark in target for target in filled for mark in "{}#")


def test_most_subjects_are_asked_several_questions(
    written: dict[str, list[dict[str, object]]],
) -> None:
    for rows in written.values():
        counts = Counter(row["subject"] for row in rows)
        assert sum(count > 1 for count in counts.values()) > 0.9 * len(counts)
