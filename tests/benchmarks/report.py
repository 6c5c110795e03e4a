"""Writes measured figures down: docs/performance.json, tables of docs/performance.md, plots.

Measures nothing. A table stands between `<!-- table NAME -->` and `<!-- end -->` in the page; the
words around it are written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.files import written_whole

DOCS = Path(__file__).parents[2] / "docs"
FIGURES_FILE = DOCS / "performance.json"
PAGE = DOCS / "performance.md"
Figures = Mapping[str, Mapping[str, Any]]
HEAD = ", EasyEdit's repository"
"""What the names of figures end with that were taken beside a clone of EasyEdit."""


def read_figures() -> dict[str, Any]:
    if not FIGURES_FILE.is_file():
        return {}
    found: dict[str, Any] = json.loads(FIGURES_FILE.read_text(encoding="utf-8"))
    return found


def write_figures(found: Figures) -> None:
    with written_whole(FIGURES_FILE) as path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_page(found: Figures) -> None:
    """Every table and plot whose figures are there, anew."""

    def anew(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        rows = TABLES[name](found, *arguments)
        body = "\n".join(rows) if len(rows) > 2 else "(not measured)"
        return f"<!-- table {match[1]} -->\n{body}\n<!-- end -->"

    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"<!-- table ([^>]*?) -->\n.*?<!-- end -->", anew, page, flags=re.DOTALL)
    with written_whole(PAGE) as path:
        path.write_text(page, encoding="utf-8")
    plot_edits(found)
    plot_growth(found)


def table(*heads: str) -> list[str]:
    return [row(*heads), row(*("---" for _ in heads))]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def seconds(value: Mapping[str, float]) -> str:
    unit, scale = ("ms", 1000) if value["median"] < 1 else ("s", 1)
    return f"{value['median'] * scale:.3g} {unit}"


def times(value: Mapping[str, float]) -> str:
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def contestants(found: Figures, shape: str, what: str) -> dict[str, Mapping[str, Any]]:
    """{row: its figures} of one shape; EasyEdit as released and, where measured, its repository.

    `shape` and dtype name the figure. What was measured twice is taken from the repository's run.
    """
    released = found.get(f"edits {shape}", {}).get("found", {}).get(what, {})
    head = found.get(f"edits {shape}{HEAD}", {}).get("found", {}).get(what, {})
    rows = dict(head or released)
    if head:
        rows = {_of_head(name): value for name, value in rows.items()}
        rows |= {_of_release(name): v for name, v in released.items() if "EasyEdit" in name}
    return rows


def _of_head(name: str) -> str:
    return name.replace("EasyEdit", "EasyEdit's repository")


def _of_release(name: str) -> str:
    return name.replace("EasyEdit", "EasyEdit 0.0.1.dev0")


def edits_table(found: Figures, shape: str, dtype: str = "float32") -> list[str]:
    rows = table("one edit", "edit", "with restore", "times the narrow limit, with restore")
    of = contestants(found, f"{shape} {dtype}", "one edit")
    for name, value in of.items():
        if name.endswith(", with restore"):
            continue
        restored = of.get(f"{name}, with restore", value)
        limit = name.startswith("limit")
        rows.append(
            row(
                name,
                seconds(value["seconds"]),
                "" if limit else seconds(restored["seconds"]),
                times(restored["ratio"]),
            )
        )
    return rows


def batch_table(found: Figures, shape: str, dtype: str = "float32") -> list[str]:
    rows = table("a batch of 8", "edit, with restore", "times this package")
    for name, value in contestants(found, f"{shape} {dtype}", "a batch of 8").items():
        if name.endswith(", with restore"):
            says = name.removesuffix(", with restore")
            rows.append(row(says, seconds(value["seconds"]), times(value["ratio"])))
    return rows


def memory_table(found: Figures, *shapes: str) -> list[str]:
    rows = table("MiB at most", *(f"{shape}: {part}" for shape in shapes for part in PARTS))
    names: dict[str, dict[str, list[str]]] = {}
    for name, figure in found.items():
        match = re.fullmatch(r"memory (\S+) float32(.*?): (.*)", name)
        if match is None or match[1] not in shapes:
            continue
        says = _of_head(match[3]) if match[2] else _of_release(match[3])
        cells = [f"{figure['found'][key]:,.0f}" for key in PARTS.values()]
        names.setdefault(says, {})[match[1]] = cells
    none = [""] * len(PARTS)
    return rows + [
        row(name, *(cell for shape in shapes for cell in of.get(shape, none)))
        for name, of in names.items()
    ]


PARTS = {
    "over the model": "over_model",
    "over model and networks": "over_model_and_network",
}


def in_a_row_table(found: Figures, shape: str) -> list[str]:
    rows = table("200 edits in a row", "each", "times this package")
    of: dict[str, Mapping[str, Any]] = {}
    for end, says in ((HEAD, _of_head), ("", _of_release)):
        figure = found.get(f"in a row {shape}{end}", {}).get("found", {})
        of = {**{says(name): value for name, value in figure.items()}, **of}
    return rows + [row(n, seconds(v["seconds"]), times(v["ratio"])) for n, v in of.items()]


def training_table(found: Figures) -> list[str]:
    rows = table("training step", "seconds", "times as fast as the first of its rank", "MiB")
    for name, figure in found.items():
        if not name.startswith("training"):
            continue
        for who, value in figure["found"].items():
            ratio = value["ratio"]
            faster = {"median": 1 / ratio["median"], "low": 1 / ratio["high"]}
            faster["high"] = 1 / ratio["low"]
            mib = f"{value['mib']:,.0f}" if "mib" in value else ""
            says = f"{name.removeprefix('training, ')}: {who}"
            rows.append(row(says, seconds(value["seconds"]), times(faster), mib))
    return rows


def disk_table(found: Figures) -> list[str]:
    rows = table(
        "7B shape on disk",
        "forward",
        "edit with restore",
        "of it the network's pass",
        "over a forward",
        "times a forward, without the network's pass",
        "MiB at most",
    )
    for name, figure in found.items():
        if not name.startswith("disk, "):
            continue
        of = figure["found"]
        says = f"`apply: {name.split(', ')[1]}`"
        if "gib" in of:
            says += f", held to {of['gib']} GiB"
        rows.append(
            row(
                says,
                seconds(of["forward"]),
                seconds(of["edit with restore"]),
                seconds(of["of it the network's pass"]),
                seconds(of["over forward"]),
                times(of["ratio without the network's pass"]),
                f"{of['mib']:,.0f}",
            )
        )
    return rows


def start_table(found: Figures) -> list[str]:
    rows = table("start", "seconds", "goal")
    imports = found.get("start, imports", {}).get("found")
    if imports:
        rows.append(row("`import torch, accelerate, transformers.pytorch_utils`",
                        seconds(imports["what it needs"]), ""))  # fmt: skip
        rows.append(row("`import easyedit_mend_parallel`", seconds(imports["this package"]),
                        f"{seconds(imports['more'])} more; at most 200 ms"))  # fmt: skip
    for name, figure in found.items():
        if name.startswith("start, first edit"):
            of, shape = figure["found"], name.split()[-1]
            goal = f"{times(of['ratio'])} times the second; at most 1.5"
            rows.append(row(f"first edit, {shape}", seconds(of["first"]), goal))
    return rows


def growth_table(found: Figures) -> list[str]:
    rows = table("what grows", "figure")
    soak, solved, systems, targets, copied = (
        found.get(f"growth, {what}", {}).get("found", {})
        for what in ("soak", "solved", "systems", "targets", "bytes")
    )
    if soak:
        level = soak["ms"][len(soak["ms"]) // 2]
        edits = f"{soak['edits']:,} edits that stay in"
        rows += [
            row(f"time of an edit, over {edits}",
                f"{level:.1f} ms; {soak['ms_slope_per_10000']:+.2f} ms in 10,000 edits"),
            row(f"memory of the process, over {edits}",
                f"{soak['mib_slope_per_10000']:+.1f} MiB in 10,000 edits"),
            row("the last edit, and all edits, taken out to the bit",
                " and ".join("yes" if value else "no" for value in soak["exact"])),
        ]  # fmt: skip
    if solved:
        each = (solved["mib"][-1] - solved["mib"][0]) / (
            solved["edits"] - int(next(iter(solved["ms"])))
        )
        undone = "undone" if solved["exact"] else "not undone"
        says = f"{at_marks(solved['ms'])}; {each:.1f} MiB an edit; {undone} to the bit"
        rows.append(row("an edit of SmolLM2's shape, solved with those before it", says))
    for widths, system in systems.items():
        says = f"{at_marks(system['ms'])}; {system['mib']:,.0f} MiB"
        rows.append(row(f"of it one target's system, widths of a 7B, {widths}", says))
    if targets:
        rows.append(row("time of an edit by its targets, R² of a line", f"{targets['r2']:.4f}"))
    if copied:
        fit = copied["r2_with_tokens_times_width"], copied["bytes_per_token_and_width"]
        says = f"{fit[0]:.5f}; {fit[1]:.0f} bytes for a token and a unit of width"
        rows.append(row("bytes between four devices by tokens × width, R² of a line", says))
    return rows


def scopes_table(found: Figures) -> list[str]:
    rows = table("SmolLM2's shape, one thread", "time", "times the pass without edits")
    figure = found.get("scopes smollm2-135m", {}).get("found", {})
    for what, says in (("text", "12 tokens"), ("token", "one token after a cache")):
        for name, one in figure.get(what, {}).items():
            rows.append(row(f"{says}: {name}", seconds(one["seconds"]), times(one["ratio"])))
    return rows


def evaluation_table(found: Figures) -> list[str]:
    rows = table("measuring an edit, before and after", "a request", "times this package")
    figure = found.get("evaluation", {}).get("found", {})
    count = figure.get("requests", 1)
    for name, one in figure.get("of", {}).items():
        each = {key: value / count for key, value in one["seconds"].items()}
        rows.append(row(name, seconds(each), times(one["ratio"])))
    return rows


def at_marks(ms: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.3g} ms at {int(mark):,}" for mark, value in ms.items())


def commands_table(found: Figures) -> list[str]:
    rows = table("figure", "command", "machine", "date")
    for name, figure in found.items():
        machine, day = figure["machine"], figure["date"]
        rows.append(row(name, f"`{figure['command']}`", machine, day))
    return rows


TABLES: dict[str, Callable[..., list[str]]] = {
    "edits": edits_table,
    "batch": batch_table,
    "memory": memory_table,
    "in-a-row": in_a_row_table,
    "training": training_table,
    "disk": disk_table,
    "growth": growth_table,
    "scopes": scopes_table,
    "evaluation": evaluation_table,
    "start": start_table,
    "commands": commands_table,
}


def plot_edits(found: Figures) -> None:
    """How many times the narrow limit an edit with restore takes, a bar for each contestant."""
    matches = [re.match(r"edits (\S+ \w+)", name) for name in found]
    shapes = list(dict.fromkeys(match[1] for match in matches if match))
    if not shapes:
        return
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(6.5 * len(shapes), 3.6), squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        of = contestants(found, shape, "one edit")
        names = [n for n in of if n.endswith("restore")] + ["limit, whole"]
        ratios = [of[name]["ratio"] for name in names]
        says = [name.removesuffix(", with restore").replace("`", "") for name in names]
        middles = [ratio["median"] for ratio in ratios]
        spread = [[abs(r["median"] - r[end]) for r in ratios] for end in ("low", "high")]
        axis.barh(says, middles, xerr=spread, color=_colours(says))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=shape, xlabel="edit with restore, times the narrow limit")
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(DOCS / "performance-edits.png", dpi=130)


def _colours(says: Sequence[str]) -> list[str]:
    return ["tab:blue" if name.startswith("this package") else "0.6" for name in says]


def plot_growth(found: Figures) -> None:
    """Time and memory over ten thousand edits, time by targets, and bytes by tokens and width."""
    if not all(f"growth, {what}" in found for what in ("soak", "targets", "bytes")):
        return
    soak, targets, copied = (found[f"growth, {w}"]["found"] for w in ("soak", "targets", "bytes"))
    figure, axes = _pyplot().subplots(1, 4, figsize=(17, 3.6))
    step = soak["edits"] / len(soak["ms"])
    axes[0].plot([step * n for n in range(len(soak["ms"]))], soak["ms"])
    axes[0].set(title="each edit of a soak", xlabel="edits before it", ylabel="ms")
    axes[1].plot([step * n for n in range(len(soak["mib"]))], soak["mib"])
    axes[1].set(title="memory of the process", xlabel="edits before it", ylabel="MiB")
    axes[2].plot(targets["targets"], targets["ms"], marker="o")
    axes[2].set(title="an edit, by its targets", xlabel="targets", ylabel="ms")
    for width, amounts in copied["bytes"].items():
        axes[3].plot(copied["tokens"], amounts, marker="o", label=f"width {width}")
    axes[3].set(title="bytes between devices", xlabel="tokens", xscale="log", yscale="log")
    axes[3].set_xticks(copied["tokens"], [str(tokens) for tokens in copied["tokens"]])
    axes[3].minorticks_off()
    axes[3].legend()
    for axis in axes[:3]:
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
    figure.tight_layout()
    figure.savefig(DOCS / "performance-growth.png", dpi=130)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
