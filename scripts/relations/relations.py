"""Facts without answers, for a scope: what may be asked of a subject, in several wordings.

`python scripts/relations/relations.py OUT --check` writes train_relations.jsonl and
validation_relations.jsonl, and says whether each is the file that split.json names. A scope is
trained to tell these questions apart. Knows a file of wordings, no tokenizer and no model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SEED = 5
SUBJECTS = 4
"""Subjects of which each question is asked."""
NO_ANSWER = "(none)"
"""The target of every fact: a scope's training reads no target."""
PARTS = ("train", "validation")


def facts() -> dict[str, list[dict[str, Any]]]:
    """{part: its facts}"""
    kinds = yaml.safe_load((HERE / "data" / "relations.yaml").read_text("utf-8"))
    rng = random.Random(SEED)
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for kind in kinds.values():
        for relation, wordings in kind["relations"].items():
            for subject in rng.sample(kind["subjects"], SUBJECTS):
                asked = [wording.format(subject) for wording in wordings]
                prompt, *rephrases = [text[0].upper() + text[1:] for text in asked]
                fact = {"prompt": prompt, "target_new": NO_ANSWER, "subject": named(subject)}
                fact |= {"relation": relation, "rephrases": rephrases}
                found[kind.get("part", "train")].append(fact)
    return found


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
    for part, rows in facts().items():
        name = f"{part}_relations.jsonl"
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
