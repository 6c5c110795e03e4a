"""`mend-parallel show`: shows an edit in the terminal, and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyedit_mend_parallel.cli.where import asked, edits_at

if TYPE_CHECKING:
    from easyedit_mend_parallel.edits import SavedEdit
    from easyedit_mend_parallel.edits.scoping import Near
    from easyedit_mend_parallel.evaluation.answers import Answer

Judged = tuple["list[Answer]", "list[float]", "list[float]"]
"""Answers, and their probabilities before and after the edit."""
Shown = tuple[Judged, "list[Near]"]
"""These, and with `apply: scoped` the requests that are nearest to each text."""


def command(
    source: Annotated[
        Path, typer.Argument(metavar="EDIT", help="An edit, or a journal (its applied edits).")
    ],
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it there.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A hyperparameter file: also ask the model it names.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show the size of an edit in each layer and for each token, and where its targets were.

    With --config, load the base and also show the probabilities of old and new answers on prompt,
    rephrases and neighbours, before and after the edit.
    """
    from easyedit_mend_parallel.edits.picture import draw, sizes_of

    edit = edits_at(source)
    judged: Judged = ([], [], [])
    near: list[Near] = []
    if config is not None:
        judged, near = _judge(edit, config)
    if png is not None:
        draw(edit, png, *judged)
    if as_json:
        said = _as_json(edit, judged)
        if near:
            said["near"] = [asdict(one) for one in near]
        print(json.dumps(said, indent=2))
        return
    console = Console()
    console.print(escape(asked(edit)), style="bold", highlight=False)
    _show_about(edit, console)
    table = Table("target", "lies on", "‖ΔW‖", "rows", "size of each token's part")
    sizes = sizes_of(edit)
    largest = max((max(target.rows, default=0.0) for target in sizes), default=0.0)
    for target in sizes:
        table.add_row(
            target.label,
            escape(target.place),
            f"{target.norm:.3g}",
            str(len(edit.updates[target.name].keys)),
            _shaded(target.rows, largest),
        )
    console.print(table)
    _show_tokens(edit, console)
    if judged[0]:
        _show_answers(judged, console)
    if near:
        _show_near(near, console)
    if png is not None:
        console.print(f"drawn: {escape(str(png))}", highlight=False)


def _judge(edit: SavedEdit, config: Path) -> Shown:
    """Measure the base that CONFIG names on the edit's texts, without the edit and with it."""
    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.editor import MendParallel
    from easyedit_mend_parallel.edits.scoping import nearest
    from easyedit_mend_parallel.evaluation.answers import answers_of, probabilities
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams

    hparams = MENDParallelHyperParams.from_hparams(config)
    model, tokenizer = load_model(hparams)
    answers = answers_of(model, tokenizer, edit.requests)
    before = probabilities(model, tokenizer, answers)
    scoping = None
    if hparams.apply == "scoped":
        scoping = MendParallel(model, tokenizer, hparams).scoping
    applied = edit.apply(model, hparams.apply, scoping=scoping)
    after = probabilities(model, tokenizer, answers)
    texts = list(dict.fromkeys(answer.prompt for answer in answers))
    near = nearest(model, tokenizer, texts)
    applied.rollback()
    return (answers, before, after), near


def _as_json(edit: SavedEdit, judged: Judged) -> dict[str, Any]:
    from easyedit_mend_parallel.edits.picture import sizes_of, tokens_of

    return {
        "requests": [{"prompt": r.prompt, "target_new": r.target_new} for r in edit.requests],
        "base": edit.about["base"]["model"]["id"],
        "losses": edit.about.get("losses"),
        "seconds": edit.about.get("seconds"),
        "squashed": edit.about.get("squashed"),
        "versions": edit.about.get("versions"),
        "targets": [
            {**asdict(target), "tokens": tokens_of(edit, target)} for target in sizes_of(edit)
        ],
        "answers": [
            {
                "kind": answer.kind,
                "role": answer.role,
                "prompt": answer.prompt,
                "answer": answer.answer,
                "before": was,
                "after": now,
            }
            for answer, was, now in zip(*judged, strict=True)
        ],
    }


def _show_about(edit: SavedEdit, console: Console) -> None:
    about = edit.about
    facts = [f"base {about['base']['model']['id'] or about['base']['model']['class']}"]
    if about.get("losses"):
        facts.append("loss before " + ", ".join(f"{loss:.2f}" for loss in about["losses"][:8]))
    if about.get("seconds"):
        facts.append(f"{about['seconds']:.2g} s")
    if about.get("squashed"):
        worst = max(about["squashed"]["errors"].values(), default=0.0)
        facts.append(f"squashed to rank {about['squashed']['rank']}, error up to {worst:.1%}")
    console.print(escape("; ".join(facts)), style="dim", highlight=False)


def _shaded(rows: list[float], largest: float) -> str:
    from easyedit_mend_parallel.edits.picture import shades

    return shades(rows, largest)


def _show_tokens(edit: SavedEdit, console: Console) -> None:
    """The token of each column of the sizes, for inputs whose tokens are known."""
    from easyedit_mend_parallel.edits.picture import sizes_of, tokens_of

    known = {tuple(tokens_of(edit, target)): None for target in sizes_of(edit)}
    for tokens in known:
        if any(not token.isdigit() for token in tokens):
            said = " · ".join(token.strip() or repr(token) for token in tokens)
            console.print(escape(f"tokens: {said}"), style="dim", highlight=False)


def _show_near(near: list[Near], console: Console) -> None:
    table = Table("text", "nearest requests", "subject", "logit", "fires from", title="scope")
    last = ""
    for one in near:
        fires = one.logit > one.threshold
        table.add_row(
            "" if one.text == last else escape(one.text),
            escape(one.prompt),
            escape(one.subject),
            f"{one.logit:.2f}",
            f"{one.threshold:.2f}",
            style="bold" if fires else "dim",
        )
        last = one.text
    console.print(table)


def _show_answers(judged: Judged, console: Console) -> None:
    table = Table("text", "", "answer", "", "before", "after")
    for answer, was, now in zip(*judged, strict=True):
        table.add_row(
            escape(answer.prompt),
            answer.kind,
            escape(answer.answer),
            answer.role,
            f"{was:.1%}",
            f"{now:.1%}",
        )
    console.print(table)
