"""Mixes the facts on which the scope that ships was trained, and those that set its thresholds.

    python scripts/relations/mixed.py OUT --relations OUT --quality OUT --makes OUT

writes train_scope.jsonl and validation_scope.jsonl. The folders are those that relations.py,
scripts/quality/facts.py and scripts/makes/makes.py wrote. Knows no tokenizer and no model.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

SEED, FACTS = 21, 4200
"""As many facts as a scope is trained on, together with those that only fill its memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("relations", "quality", "makes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    wide = lines(asked.quality / "train_wide.jsonl")
    facts = [line for line in wide if '"prompt"' in line]
    unrelated = [line for line in wide if '"prompt"' not in line]
    makes = lines(asked.makes / "train_makes.jsonl")
    train = lines(asked.relations / "train_relations.jsonl")
    train += [line for line in makes if '"prompt"' in line]
    train += random.Random(SEED).sample(facts, FACTS - len(train)) + unrelated
    validation = [
        *lines(asked.quality / "validation.jsonl"),
        *lines(asked.makes / "validation_makes.jsonl"),
        *lines(asked.relations / "validation_relations.jsonl"),
    ]
    for name, rows in (("train_scope", train), ("validation_scope", validation)):
        (asked.out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} lines")


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True)


if __name__ == "__main__":
    main()
