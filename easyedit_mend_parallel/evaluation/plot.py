"""Draws an evaluation: every share, before and after the edits, with its interval.

Knows no model and computes no figures. Needs matplotlib (`pip install
"easyedit-mend-parallel[train]"`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.files import written_whole

NO_SHARES = ("perplexity", "text_likelihood")


def draw_figures(
    path: str | Path,
    before: Mapping[str, Score],
    after: Mapping[str, Score],
    given: Mapping[str, Score],
    title: str,
) -> Path:
    """Draw the figures that are shares (0 to 1) to a PNG file, written whole or not at all."""
    from matplotlib.figure import Figure

    names = [name for name in after if name not in NO_SHARES]
    figure = Figure(figsize=(9.0, 0.36 * len(names) + 1.6), layout="constrained")
    axis = figure.subplots()
    kinds = (
        ("before", before, "C7", -0.2),
        ("after", after, "C3", 0.0),
        ("unedited, given the answer", given, "C0", 0.2),
    )
    for label, scores, colour, shift in kinds:
        shown = [(line, scores[name]) for line, name in enumerate(names) if name in scores]
        if not shown:
            continue
        mean = [score.mean for _, score in shown]
        below = [max(0.0, score.mean - score.low) for _, score in shown]
        above = [max(0.0, score.high - score.mean) for _, score in shown]
        lines = [line + shift for line, _ in shown]
        axis.errorbar(mean, lines, xerr=[below, above], fmt="o", color=colour, ms=4, label=label)
    axis.set_yticks(range(len(names)), [f"{name} (n = {after[name].n})" for name in names])
    axis.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3)
    path = Path(path)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
