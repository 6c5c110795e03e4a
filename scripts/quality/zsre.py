"""Facts to train on, as EasyEdit's own data set reads them. Knows nothing of how they are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def as_zsre(train: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The training facts as EasyEdit's ZsreDataset reads them: one record per fact and rephrase.

    EasyEdit trains on one locality text per record and wants "nq question: " in it. As in this
    package's own training, 60 % are prompts of the same relation about another training subject
    (with the continuation that is true, else that subject's own new object), the others sentences.
    """
    rng = random.Random(seed)
    edits = [record for record in train if "prompt" in record]
    texts = [record["text"] for record in train if "text" in record]
    alike: dict[str, list[dict[str, Any]]] = {}
    for record in edits:
        alike.setdefault(record["relation"], []).append(record)
    records = []
    for record in edits:
        for rephrase in record["rephrases"]:
            other = rng.choice([r for r in alike[record["relation"]] if r is not record])
            loc = rng.choice((other["prompt"], *other["rephrases"]))
            answer = other.get("ground_truth", other["target_new"])
            if rng.random() >= 0.6:
                words = rng.choice(texts).split()
                loc, answer = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
            records.append(
                {
                    "subject": record["subject"],
                    "src": record["prompt"],
                    "alt": record["target_new"],
                    "answers": [record.get("ground_truth", other["target_new"])],
                    "rephrase": rephrase,
                    "loc": f"nq question: {loc}",
                    "loc_ans": answer,
                }
            )
    rng.shuffle(records)
    return records
