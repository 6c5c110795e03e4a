"""Measures edits: reads facts with the texts that test them, and computes the figures.

`record` queries a model before an edit, `score` after it, and `figures` computes the figures from
both; `evaluate` does all three. Knows how a model is called and how an update is attached. Changes
no weight.
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
