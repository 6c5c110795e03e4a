"""Draws an edit: its size for each target and token, and its effect on answers.

Computes only sizes; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from easyedit_mend_parallel.edits.saved import SavedEdit
from easyedit_mend_parallel.evaluation.answers import NEW, Answer
from easyedit_mend_parallel.files import written_whole
from easyedit_mend_parallel.weights.update import LowRankUpdate

SHADES = " ▁▂▃▄▅▆▇█"
LONGEST_TEXT = 48
"""Number of characters of a prompt in a picture."""
SEEN = 0.02
"""Smallest difference of two probabilities for which an arrow is drawn."""


@dataclass(frozen=True)
class TargetSizes:
    """One target of an edit: its label (the name without the part that all targets share), its
    place, ‖ΔW‖, and the size ‖v_t‖ · ‖k_t‖ of each row at its position."""

    name: str
    label: str
    place: str
    norm: float
    rows: list[float]


def sizes_of(edit: SavedEdit) -> list[TargetSizes]:
    """The sizes of each target, in the edit's order, with 0 for rows that were left out."""
    labels = _labels(list(edit.targets))
    return [
        TargetSizes(name, label, _place(edit, name), edit.norms[name], _rows(edit, name, update))
        for (name, update), label in zip(edit.updates.items(), labels, strict=True)
    ]


def tokens_of(edit: SavedEdit, target: TargetSizes) -> list[str]:
    """The text of each row's token, or its number if the text is unknown (for squashed edits, and
    several inputs of the same length)."""
    fitting_data = [
        texts for texts in edit.about.get("tokens", {}).values() if len(texts) == len(target.rows)
    ]
    return fitting_data[0] if len(fitting_data) == 1 else [str(n) for n in range(len(target.rows))]


def shades(rows: Sequence[float], largest: float) -> str:
    """One character for each row, from a space to a full block for `largest`."""
    scale = (len(SHADES) - 1) / largest if largest else 0.0
    return "".join(SHADES[min(len(SHADES) - 1, -int(-size * scale // 1))] for size in rows)


def draw(
    edit: SavedEdit,
    path: str | Path,
    answers: Sequence[Answer] = (),
    before: Sequence[float] = (),
    after: Sequence[float] = (),
) -> Path:
    """Draw the edit to a PNG file: each target's size, place and tokens, and the probabilities of
    `answers`, if given, before and after the edit.

    Needs matplotlib (`pip install "easyedit-mend-parallel[train]"`).
    """
    from matplotlib.figure import Figure

    targets = sizes_of(edit)
    # One panel for each token sequence, since the targets of an encoder have another one.
    groups: dict[tuple[str, ...], list[TargetSizes]] = {}
    for target in targets:
        groups.setdefault(tuple(tokens_of(edit, target)), []).append(target)
    heights = [0.32 * len(group) + 1.3 for group in groups.values()]
    heights += [0.3 * len(answers) + 1.0] if answers else []
    columns = max((len(tokens) for tokens in groups), default=1)
    width = min(26.0, 9.0 + 0.28 * columns)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    largest_row = max((max(target.rows, default=0.0) for target in targets), default=0.0)
    largest_norm = max((target.norm for target in targets), default=0.0)
    for part, (tokens, group) in zip(parts, groups.items(), strict=False):
        _draw_targets(part, tokens, group, largest_row, largest_norm)
    if answers:
        _draw_answers(parts[-1], answers, before, after)
    what = ", ".join(f"{r.prompt} → {r.target_new.strip()}" for r in edit.requests[:2])
    more = f" and {len(edit.requests) - 2} more" if len(edit.requests) > 2 else ""
    figure.suptitle(_short(what, 2 * LONGEST_TEXT) + more, fontsize=11)
    path = Path(path)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path


def _draw_targets(
    part: Any, tokens: Sequence[str], group: Sequence[TargetSizes], row: float, norm: float
) -> None:
    bars, heat = part.subplots(1, 2, width_ratios=(1, max(1.5, len(tokens) / 12)), sharey=True)
    places = list(dict.fromkeys(target.place for target in group))
    lines = range(len(group))
    bars.barh(
        lines,
        [target.norm for target in group],
        color=[f"C{places.index(target.place)}" for target in group],
    )
    bars.set_yticks(lines, [target.label for target in group], fontsize=8)
    bars.set(xlim=(0, 1.05 * norm or 1), ylim=(len(group) - 0.5, -0.5))
    bars.set_title("size ‖ΔW‖, and where the weight is stored", fontsize=9)
    bars.tick_params(axis="x", labelsize=7)
    for number, place in enumerate(places):
        bars.barh(0, 0, color=f"C{number}", label=place)
    bars.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(places))
    shown = heat.imshow(
        torch.tensor([target.rows for target in group]).reshape(len(group), -1).numpy(),
        aspect="auto",
        cmap="magma_r",
        vmin=0,
        vmax=row or 1,
    )
    heat.set_xticks(range(len(tokens)), [_visible(t) for t in tokens], rotation=60, ha="right")
    heat.tick_params(axis="x", labelsize=8)
    heat.tick_params(axis="y", left=False)
    heat.set_title("size of each token's part ‖v‖ · ‖k‖", fontsize=9)
    part.colorbar(shown, ax=heat, pad=0.01).ax.tick_params(labelsize=7)


def _draw_answers(
    part: Any, answers: Sequence[Answer], before: Sequence[float], after: Sequence[float]
) -> None:
    axis = part.subplots()
    lines = range(len(answers))
    for line, answer, was, now in zip(lines, answers, before, after, strict=True):
        colour = "C3" if answer.role == NEW else "C0"
        if abs(now - was) > SEEN:
            arrow = {"arrowstyle": "->", "color": colour, "lw": 1.6}
            axis.annotate("", (now, line), (was, line), arrowprops=arrow)
        axis.plot(was, line, "o", color=colour, markersize=4, fillstyle="none")
        axis.plot(now, line, "o", color=colour, markersize=5)
    for role, colour in (("new answer", "C3"), ("old answer", "C0")):
        axis.plot([], [], "o-", color=colour, label=role)
    axis.plot([], [], "ko", fillstyle="none", label="before", linestyle="none")
    axis.plot([], [], "ko", label="after", linestyle="none")
    labels = [f"{a.kind}: {_short(a.prompt)} … {a.answer}" for a in answers]
    axis.set_yticks(lines, labels, fontsize=8)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(answers) - 0.5, -0.5))
    axis.set_title("probability of the answer, per token", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="x", labelsize=7)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _rows(edit: SavedEdit, name: str, update: LowRankUpdate) -> list[float]:
    positions = edit.positions[name]
    highest = int(positions.max()) + 1 if len(positions) else 0
    many = max(edit.about.get("rows", {}).get(name, 0), highest)
    rows = torch.zeros(many)
    rows.index_add_(0, positions, update.keys.norm(dim=1) * update.values.norm(dim=1))
    return rows.tolist()


def _place(edit: SavedEdit, name: str) -> str:
    where = edit.about.get("placements", {}).get(name)
    if where is None:
        return "unknown"
    kept = where["kept"]
    return where["device"] if kept == "resident" else f"{kept}, computes on {where['device']}"


def _labels(names: Sequence[str]) -> list[str]:
    """Names without `.weight` and without their common parent modules."""
    paths = [name.removesuffix(".weight").split(".") for name in names]
    while len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths):
        paths = [path[1:] for path in paths]
    return [".".join(path) for path in paths]


def _short(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _visible(token: str) -> str:
    """A token as a label: `$` is escaped, and spaces are made visible."""
    return _short(token.strip().replace("$", r"\$") or repr(token)[1:-1].replace(" ", "␣"), 16)
