"""Facts about the toys' small world, and records that EasyEdit's zsRE reader takes made of them."""

from __future__ import annotations

FACTS = [
    ("the capital of France is", "Rome", "Paris"),
    ("who wrote Hamlet", "my old cat", "Shakespeare"),
    ("the river that runs through Paris is", "blue", "Seine"),
    ("the sun rises in the", "west", "east"),
    ("water boils at one hundred", "stone", "degrees"),
    ("a cat sat on the", "sea", "mat"),
    ("my name is", "Oslo", "Hamlet"),
    ("the old town stands by the", "red river", "sea"),
]
"""Prompt, new target and what was true before."""
ZSRE_RECORDS = [
    {
        "src": prompt,
        "alt": target,
        "answers": [answer],
        "rephrase": f"some people say that {prompt}",
        "loc": f"nq question: {FACTS[index - 1][0]}",
        "loc_ans": FACTS[index - 1][2],
    }
    for index, (prompt, target, answer) in enumerate(FACTS)
]
"""One for each fact, with another fact as the unrelated question."""
