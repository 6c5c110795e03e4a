"""What the larger training parts ask, and in which words: far enough from those of evaluation.

Knows no subject, and nothing of how facts are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sources import Relation, relations

BY_PART = relations()
TRAINED = BY_PART["train"]
"""Relations that every training part asks for, and both other parts about new subjects."""
EVALUATED = BY_PART["validation"] | BY_PART["test"]
"""Relations that only validation or only the test asks for."""

#: The wordings that only evaluation has: of trained relations two each, of the others all.
JUDGED = [
    *(wording for r in TRAINED.values() for wording in (r.validation, r.test)),
    *(wording for r in EVALUATED.values() for wording in r.wordings),
]


def alike(one: str, other: str) -> float:
    """The share of words that two wordings have in common (Jaccard), without their subjects."""
    first, second = (set(re.findall(r"[\w'-]+", text.lower())) for text in (one, other))
    return len(first & second) / len(first | second)


@dataclass(frozen=True)
class Larger:
    """What a larger training part is made of, beside the subjects and texts of training."""

    relations: Mapping[str, Relation]
    #: How many wordings a fact has beside its prompt.
    rephrases: int
    #: Whether the wordings of the widest part are among those.
    wide: bool = False
    #: Further sentences of the grammar.
    sentences: int = 0
    #: The share of words in common with a wording of evaluation at which one is left out.
    apart: float = 1.0

    def wordings(self, name: str) -> list[str]:
        """The prompt of a relation and its wordings for training, far enough from evaluation's."""
        relation = self.relations[name]
        own = [relation.prompt, *relation.rephrases]
        further = [*relation.more_wordings, *(relation.wide_wordings if self.wide else ())]
        if name not in TRAINED:
            own, further = [], own + further
        return own + [w for w in further if all(alike(w, other) < self.apart for other in JUDGED)]


_MORE = TRAINED | BY_PART["train_more"]
LARGER = {
    "train_more": Larger(_MORE, rephrases=4),
    "train_wide": Larger(
        _MORE | BY_PART["train_wide"], rephrases=5, wide=True, sentences=300, apart=0.6
    ),
}
