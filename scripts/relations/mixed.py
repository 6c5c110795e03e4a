"""Mixes the facts on which the pair for scopes was trained, and those that choose and set it.

    python scripts/relations/mixed.py OUT --relations OUT --quality OUT --makes OUT

writes train_scope.jsonl and validation_scope.jsonl for the scope, and train_pair.jsonl and
validation_pair.jsonl for the hypernetwork. The folders are those that relations.py,
scripts/quality/facts.py and scripts/makes/makes.py wrote. Knows no tokenizer and no model.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

SEED, FACTS = 21, 4200
"""As many facts as a scope is trained on, together with those that only fill its memory."""
MAKES, ANSWERED = 4, 2
"""How often the hypernetwork's training has each fact of the makes and each answered relation."""
MEASURED = 80
"""Facts of each make on which the hypernetwork is chosen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    for name in ("relations", "quality", "makes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    wide = lines(asked.quality / "train_wide.jsonl")
    facts = [line for line in wide if '"prompt"' in line]
    unrelated = [line for line in wide if '"prompt"' not in line]
    makes = [line for line in lines(asked.makes / "train_makes.jsonl") if '"prompt"' in line]
    validation = {
        "relations": lines(asked.relations / "validation_relations.jsonl"),
        "answered": lines(asked.relations / "validation_answered.jsonl"),
        "quality": lines(asked.quality / "validation.jsonl"),
        "makes": lines(asked.makes / "validation_makes.jsonl"),
    }
    rng = random.Random(SEED)
    scope = lines(asked.relations / "train_relations.jsonl") + makes
    scope += rng.sample(facts, FACTS - len(scope)) + unrelated
    answered = lines(asked.relations / "train_answered.jsonl")
    pair = facts + makes * MAKES + answered * ANSWERED + unrelated
    drawn = [
        line
        for make in ("quality", "makes", "answered")
        for line in rng.sample([one for one in validation[make] if '"prompt"' in one], MEASURED)
    ]
    texts = [line for line in validation["quality"] if '"prompt"' not in line]
    files = {
        "train_scope": scope,
        "validation_scope": validation["quality"] + validation["makes"] + validation["relations"],
        "train_pair": pair,
        "validation_pair": drawn + texts,
    }
    for name, rows in files.items():
        (asked.out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} lines")


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines(keepends=True)


if __name__ == "__main__":
    main()
