"""Draws the curves of a training run from its metrics file. Knows no model and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easyedit_mend_parallel.evaluation.measures import MEASURES
from easyedit_mend_parallel.files import written_whole
from easyedit_mend_parallel.training.metrics import FILE, read_metrics

PICTURE = "curves.png"
LABELS = {
    "edit": "edit loss (nats)",
    "locality": "locality (KL, nats)",
    "continuation": "continuation (KL, nats)",
}


def draw_curves(folder: Path) -> Path:
    """Draw `folder/metrics.jsonl` into `folder/curves.png`: losses, and each split's measures.

    Needs matplotlib (`pip install "easyedit-mend-parallel[train]"`).
    """
    from matplotlib.figure import Figure

    lines = read_metrics(folder / FILE)
    train = [line for line in lines if line["kind"] == "train"]
    splits = list(dict.fromkeys(line["kind"] for line in lines if line["kind"] != "train"))
    figure = Figure(figsize=(5 * (1 + max(1, len(splits))), 4), layout="constrained")
    axes = figure.subplots(1, 1 + max(1, len(splits)), squeeze=False)[0]
    _losses(axes[0], train)
    for axis, split in zip(axes[1:], splits, strict=False):
        _measures(axis, split, [line for line in lines if line["kind"] == split])
    path = folder / PICTURE
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _losses(axis: Any, lines: list[dict[str, Any]]) -> None:
    steps = [line["step"] for line in lines]
    for name, label in LABELS.items():
        if any(line.get(name) for line in lines):
            axis.plot(steps, [line.get(name) for line in lines], label=label, linewidth=1)
    axis.set(title="training", xlabel="step", yscale="log")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _measures(axis: Any, split: str, lines: list[dict[str, Any]]) -> None:
    for name in MEASURES:
        found = [line for line in lines if name in line]
        if not found:
            continue
        steps = [line["step"] for line in found]
        (drawn,) = axis.plot(steps, [line[name] for line in found], label=name, marker=".")
        low = [line[f"{name}_low"] for line in found]
        high = [line[f"{name}_high"] for line in found]
        axis.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.12, linewidth=0)
    axis.set(title=split, xlabel="step", ylim=(0, 1.02))
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
