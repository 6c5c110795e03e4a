"""How good edits are: facts with the texts that judge them, and the measures.

`record` asks a model before an edit, `score` after it, and `figures` makes figures of both;
`evaluate` does all of it. Knows how a model is called, and how an update is attached; changes no
weight.
"""

from __future__ import annotations

from easyedit_mend_parallel.evaluation.examples import as_examples
from easyedit_mend_parallel.evaluation.figures import NAMES, figures, given_figures
from easyedit_mend_parallel.evaluation.generation import continuations
from easyedit_mend_parallel.evaluation.held_text import held_text
from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.evaluation.recording import (
    Answers,
    Recorded,
    likelihoods,
    record,
    score,
)
from easyedit_mend_parallel.evaluation.whole import HOW, Evaluation, evaluate

__all__ = [
    "HOW",
    "NAMES",
    "Answers",
    "Evaluation",
    "Recorded",
    "Score",
    "as_examples",
    "continuations",
    "evaluate",
    "figures",
    "given_figures",
    "held_text",
    "likelihoods",
    "record",
    "score",
]
