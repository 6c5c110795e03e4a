"""Shows what contestants.py measured: a table in Markdown, and a plot over the edits in a model.

    python scripts/quality/contestants_shown.py ours.json others.json --plot compared.png

Knows the results' JSON alone. Methods may have been measured in several runs, on the same facts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEASURES = ("edit", "rephrase", "neighbours", "unrelated", "answer_first", "repetition")
COLUMNS = (*MEASURES, "perplexity", "first ten", "last ten")
FREE = ("repetition", "perplexity")
"""Measures that the unedited model has, too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="what contestants.py wrote")
    parser.add_argument("--plot", type=Path, help="PNG")
    asked = parser.parse_args()
    results: dict[str, Any] = {}
    for path in asked.results:
        results |= json.loads(path.read_text(encoding="utf-8"))
    print(table(results, COLUMNS))
    if asked.plot:
        plot(results, MEASURES[:4], asked.plot)


def rows(results: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """{"single" or a number of edits: [(method, its figures)]}, in the order of the results."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, parts in results.items():
        if name == "unedited":
            continue
        for part, scores in parts.items():
            if isinstance(scores, dict):
                found.setdefault(part, []).append((name, scores))
    order = sorted(found, key=lambda part: 0 if part == "single" else int(part))
    return {part: found[part] for part in order}


def table(results: dict[str, Any], measures: Sequence[str]) -> str:
    """Markdown: a row for each method and number of edits, with its 95 % intervals."""
    lines = ["| edits | method | " + " | ".join(measures) + " | seconds | n |"]
    lines.append("| --- " * (len(measures) + 4) + "|")
    if "perplexity" in measures and "perplexity" in results.get("unedited", {}):
        cells = [cell(results["unedited"].get(m)) if m in FREE else "" for m in measures]
        lines.append(f"| 0 | the unedited model | {' | '.join(cells)} | | |")
    for part, methods in rows(results).items():
        for place, (name, scores) in enumerate(methods):
            cells = [cell(scores.get(measure)) for measure in measures]
            seconds, n = scores["seconds an edit"], scores["edit"][3]
            first = part if place == 0 else ""
            lines.append(f"| {first} | {name} | {' | '.join(cells)} | {seconds:.1f} | {n} |")
    return "\n".join(lines)


def cell(score: Sequence[float] | None) -> str:
    """`.96 [.94, .98]`"""
    if score is None:
        return ""
    mean, low, high = (short(value) for value in score[:3])
    return f"{mean} [{low}, {high}]"


def short(value: float) -> str:
    """Two decimals, without the zero before the point: `.96`, `1.00`, `0`."""
    text = f"{value:.2f}"
    return "0" if text == "0.00" else text.removeprefix("0")


def plot(results: dict[str, Any], measures: Sequence[str], path: Path) -> None:
    """Each measure over the number of edits in the model, a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for part, methods in rows(results).items():
        for name, scores in methods:
            lines.setdefault(name, []).append((1 if part == "single" else int(part), scores))
    colours = pyplot.get_cmap("tab20")
    figure, axes = pyplot.subplots(1, len(measures), figsize=(14, 4.2), sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        for place, (name, points) in enumerate(lines.items()):
            numbers = [number for number, scores in points if measure in scores]
            means, low, high = zip(
                *(scores[measure][:3] for _, scores in points if measure in scores), strict=True
            )
            style = "-" if name.startswith(("weight", "scoped", "apply")) else "--"
            line = axis.plot(
                numbers,
                means,
                style,
                marker="os^vDPX"[place % 7],
                label=name,
                color=colours(place % 20),
            )[0]
            axis.fill_between(numbers, low, high, color=line.get_color(), alpha=0.07)
        axis.set(title=measure, xlabel="edits in the model", xscale="log", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=7, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.84))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
