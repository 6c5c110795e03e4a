"""What the larger training parts ask, and in which words: far enough from those of evaluation.

Knows no subject, and nothing of how facts are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from more_relations import TEST, TRAINED, VALIDATION
from relations import Relation
from training_relations import MORE_RELATIONS
from wide_relations import WIDE_RELATIONS
from wordings import MORE_WORDINGS, WIDE_WORDINGS

#: The templates that only evaluation has: of trained relations two each, of new ones all.
JUDGED = [
    *(template for r in TRAINED.values() for template in (r.rephrases[3], r.unseen)),
    *(
        template
        for r in (VALIDATION | TEST).values()
        for template in (r.prompt, *r.rephrases, r.unseen)
    ),
]


def alike(one: str, other: str) -> float:
    """The share of words that two templates have in common (Jaccard), without their subjects."""
    first, second = (set(re.findall(r"[\w'-]+", text.lower())) for text in (one, other))
    return len(first & second) / len(first | second)


@dataclass(frozen=True)
class Larger:
    """What a larger training part is made of, beside the subjects and texts of training."""

    relations: Mapping[str, Relation]
    #: Relation -> templates beside its own. A fact has `rephrases` of them all.
    wordings: Mapping[str, Sequence[str]]
    rephrases: int
    sentences: int = 0
    #: The share of words in common with a template of evaluation at which one is left out.
    apart: float = 1.0

    def templates(self, name: str) -> list[str]:
        """The prompt of a relation and its wordings for training, far enough from evaluation's."""
        relation, first = self.relations[name], TRAINED.get(name)
        own = [] if first is None else [first.prompt, *first.rephrases[:3]]
        further = [] if own else [relation.prompt, *relation.rephrases]
        further += self.wordings.get(name, ())
        return own + [t for t in further if all(alike(t, other) < self.apart for other in JUDGED)]


_MORE = TRAINED | MORE_RELATIONS
LARGER = {
    "train_more": Larger(_MORE, MORE_WORDINGS, rephrases=4),
    "train_wide": Larger(
        _MORE | WIDE_RELATIONS,
        {name: MORE_WORDINGS.get(name, ()) + more for name, more in WIDE_WORDINGS.items()},
        rephrases=5,
        sentences=300,
        apart=0.6,
    ),
}
