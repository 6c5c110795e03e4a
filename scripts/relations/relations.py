"""Facts of what may be asked of a subject, in several wordings, without and with answers.

`python scripts/relations/relations.py OUT --check` writes four files, and says whether each is the
file that split.json names. A scope is trained to tell the questions of train_relations.jsonl and
validation_relations.jsonl apart; a hypernetwork is trained on the facts of train_answered.jsonl
and measured on those of validation_answered.jsonl. Knows files of wordings, no tokenizer and no
model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SEED = 5
SUBJECTS, ANSWERED = 4, 8
"""Subjects of which each question is asked, without answers and with them."""
NO_ANSWER = "(none)"
"""The target of every fact: a scope's training reads no target."""
PARTS = ("train", "validation")
Answer = Callable[[str], str]
"""The answer to a relation."""


def facts(subjects: int, answer: Answer) -> dict[str, list[dict[str, Any]]]:
    """{part: its facts}, each question asked of so many subjects."""
    rng = random.Random(SEED)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for kind in read("relations").values():
        for relation, wordings in kind["relations"].items():
            for subject in rng.sample(kind["subjects"], subjects):
                asked = [wording.format(subject) for wording in wordings]
                prompt, *rephrases = [text[0].upper() + text[1:] for text in asked]
                fact = {"prompt": prompt, "target_new": answer(relation), "subject": named(subject)}
                fact |= {"relation": relation, "rephrases": rephrases}
                found[kind.get("part", "train")].append(fact)
    return found


def invented() -> Answer:
    """Draws an answer to a relation from the patterns of answers.yaml."""
    data, rng = read("answers"), random.Random(f"{SEED}/answers")
    pattern_of = {name: pattern for pattern, names in data["answers"].items() for name in names}

    def answer(relation: str) -> str:
        filled = re.sub(
            r"\{(\w+)\}", lambda found: rng.choice(data["words"][found[1]]), pattern_of[relation]
        )
        return re.sub("#", lambda _: str(rng.randint(1, 9)), filled)

    return answer


def read(name: str) -> Any:
    return yaml.safe_load((HERE / "data" / f"{name}.yaml").read_text("utf-8"))


def named(subject: str) -> str:
    """The subject as a request names it: without an article or quotation marks."""
    return subject.strip('"').removeprefix("the ").removeprefix("The ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    split, wrong = {}, []
    expected = json.loads((HERE / "split.json").read_text("utf-8")) if asked.check else {}
    files = {}
    for part, rows in facts(SUBJECTS, lambda _: NO_ANSWER).items():
        files[f"{part}_relations.jsonl"] = rows
    for part, rows in facts(ANSWERED, invented()).items():
        files[f"{part}_answered.jsonl"] = rows
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (asked.out / name).write_text(text, encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        split[name] = {"facts": len(rows), "sha256": digest}
        if asked.check and expected[name] != split[name]:
            wrong.append(name)
    print(json.dumps(split, indent=1))
    if wrong:
        sys.exit(f"not the files that split.json names: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
