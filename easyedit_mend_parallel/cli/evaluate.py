"""`mend-parallel evaluate`: measures the effect of edits on answers, other text and free text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from easyedit_mend_parallel.cli.where import existing, progress

if TYPE_CHECKING:
    from easyedit_mend_parallel.evaluation import Evaluation
    from easyedit_mend_parallel.evaluation.data import Example
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams

BELOW = 3
"""The exit code if a figure does not meet `--at-least` or `--at-most`."""
JOURNAL = "journal"
ONE_BY_ONE = "one-by-one"


def command(
    config: Annotated[Path, typer.Argument(help="A hyperparameter file (yaml or json).")],
    requests: Annotated[
        Path, typer.Option(metavar="FILE|JOURNAL", help="Facts to edit, or a journal of edits.")
    ],
    how: Annotated[
        str, typer.Option(help="one-by-one, sequence or batch; ignored for a journal.")
    ] = ONE_BY_ONE,
    first: Annotated[
        int | None, typer.Option(help="Use only this many facts, the first ones.")
    ] = None,
    free: Annotated[bool, typer.Option("--free/--no-free", help="Also measure free text.")] = True,
    new_tokens: Annotated[int, typer.Option(help="Tokens of free text beyond the answer's.")] = 24,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--plain", help="Ask in chat form, or not (default: as in CONFIG)."),
    ] = None,
    held: Annotated[
        Path | None, typer.Option(help="Text for perplexity, one per line (default: one ships).")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every single answer, as JSON lines.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the figures there.")
    ] = None,
    at_least: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="Exit with 3 below it: edit=.95")
    ] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="Exit with 3 above it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure a model before and after edits: teacher-forced, in free text, and on other text.

    Facts of a file are edited one by one, or as --how says, and undone. The applied edits of a
    journal are measured together. Exit code 3: a figure does not meet --at-least or --at-most.
    """
    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.evaluation import HOW, held_text
    from easyedit_mend_parallel.files import written_whole
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams

    if how not in HOW:
        raise typer.BadParameter(f"{how!r} is not one of {', '.join(HOW)}", param_hint="--how")
    bounds = [*_bounds(at_least, "--at-least"), *_bounds(at_most, "--at-most")]
    hparams = MENDParallelHyperParams.from_hparams(config)
    lines = held_text(held)
    examples, unrelated = _facts(requests, first)
    _refuse_unasked([name for _, name, _ in bounds], examples, free)
    model, tokenizer = load_model(hparams)
    with progress(as_json) as bars, ExitStack() as stack:
        if answers is not None:  # fails before the work if the path cannot be written
            temporary = stack.enter_context(written_whole(answers))
        bar = bars.add_task("", total=None)

        def told(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total or None)

        options = {
            "unrelated": unrelated or lines,
            "held": lines,
            "free": free,
            "new_tokens": new_tokens,
            "chat": hparams.chat if chat is None else chat,
            "progress": told,
        }
        found = _evaluated(model, tokenizer, hparams, requests, how, examples, options)
        if answers is not None:
            text = "".join(json.dumps(line) + "\n" for line in found.lines())
            temporary.write_text(text, encoding="utf-8")
    way = JOURNAL if requests.is_dir() else how
    if png is not None:
        from easyedit_mend_parallel.evaluation.plot import draw_figures

        title = f"{len(examples)} edits, {way}"
        draw_figures(png, found.before, found.after, found.given, title)
    missed = [why for bound in bounds if (why := _missed(found, *bound))]
    if as_json:
        print(json.dumps(_as_json(found, way, missed), indent=2))
    else:
        _show(found, way, missed, [path for path in (answers, png) if path is not None])
    if missed:
        raise typer.Exit(BELOW)


def _facts(source: Path, first: int | None) -> tuple[list[Example], list[str]]:
    """The facts of a file, or of the applied edits of a journal, and the file's unrelated texts."""
    from easyedit_mend_parallel.errors import EditError
    from easyedit_mend_parallel.evaluation import as_examples
    from easyedit_mend_parallel.evaluation.data import read_examples

    if not source.is_dir():
        examples, unrelated = read_examples(source)
        return examples[:first], unrelated
    journal = existing(source)
    if not journal.applied:
        raise EditError(f"no edit is applied in {source}")
    asked = [one for number in journal.applied for one in journal.edit(number).requests]
    return as_examples(asked)[:first], []


def _evaluated(
    model: Any,
    tokenizer: Any,
    hparams: MENDParallelHyperParams,
    source: Path,
    how: str,
    examples: Sequence[Example],
    options: dict[str, Any],
) -> Evaluation:
    from easyedit_mend_parallel.editor import MendParallel, rollback_all
    from easyedit_mend_parallel.edits import Journal
    from easyedit_mend_parallel.evaluation import evaluate

    if not source.is_dir():
        editor = MendParallel(model, tokenizer, hparams)
        # Scopes read blocks that a resumed forward pass skips.
        scoped = editor.scoping is not None
        return evaluate(
            model,
            tokenizer,
            examples,
            editor.edit,
            how=how,
            targets=[] if scoped else editor.targets,
            at_outputs=not scoped,
            **options,
        )
    scoping = None
    if hparams.apply == "scoped":
        scoping = MendParallel(model, tokenizer, hparams).scoping

    class PutOn:
        """All edits of the journal, applied; can be undone."""

        def __init__(self, _requests: Any) -> None:
            Journal(source).apply_to(model, apply=hparams.apply, hold=False, scoping=scoping)

        def rollback(self) -> None:
            rollback_all(model)

    return evaluate(model, tokenizer, examples, PutOn, how="batch", **options)


def _bounds(asked: Sequence[str] | None, option: str) -> list[tuple[str, str, float]]:
    """(option, name of the figure, bound) of each `NAME=X`. Raises BadParameter."""
    from easyedit_mend_parallel.errors import suggestion
    from easyedit_mend_parallel.evaluation import NAMES

    found = []
    for one in asked or ():
        name, _, bound = one.partition("=")
        name = name.strip().replace("-", "_")
        if name not in NAMES and not name.startswith(("locality.", "portability.")):
            known = suggestion(name, NAMES) or f"; there are {', '.join(NAMES)}"
            raise typer.BadParameter(f"there is no measure {name!r}{known}", param_hint=option)
        try:
            found.append((option, name, float(bound)))
        except ValueError:
            raise typer.BadParameter(
                f"{one!r} has no number: write {name}=0.95", param_hint=option
            ) from None
    return found


def _missed(found: Evaluation, option: str, name: str, bound: float) -> str:
    """Why a figure does not meet its bound; empty if it does."""
    score = found.after.get(name)
    if score is None:
        return f"{name} could not be measured: there was no text for it"
    wrong = score.mean < bound if option == "--at-least" else score.mean > bound
    side = "below" if option == "--at-least" else "above"
    return f"{name} is {score.mean:.3f}, {side} {bound:g}" if wrong else ""


def _refuse_unasked(names: Sequence[str], examples: Sequence[Example], free: bool) -> None:
    """Raise DataError if there are no texts for a figure that has a bound."""
    from easyedit_mend_parallel.errors import DataError

    has: dict[str, Callable[[Example], Any]] = {
        "rephrase": lambda one: one.rephrases,
        "neighbours": lambda one: one.neighbours,
        "portability": lambda one: one.portability,
    }
    free_text = ("answer_", "rephrase_first", "rephrase_once", "repetition", "text_")
    for name in names:
        if not free and name.startswith(free_text):
            raise DataError(f"{name} is a figure of free text: remove --no-free")
        for kind, texts in has.items():
            if name.startswith(kind) and not any(map(texts, examples)):
                field = "rephrases" if kind == "rephrase" else kind
                raise DataError(
                    f"no fact has {field}, so {name} cannot be measured: add them to the file, or "
                    f"ask for no {name}"
                )


def _as_json(found: Evaluation, how: str, missed: list[str]) -> dict[str, Any]:
    def of(scores: Any) -> dict[str, Any]:
        return {name: asdict(score) for name, score in scores.items()}

    return {
        "how": how,
        "requests": len(found.recorded.examples),
        "before": of(found.before),
        "after": of(found.after),
        "given": of(found.given),
        "refused": found.refused,
        "missed": missed,
    }


def _show(found: Evaluation, how: str, missed: list[str], files: Sequence[Path]) -> None:
    console = Console()
    before, after, given = found.before, found.after, found.given
    table = Table("figure", "before", "after", "given the answer", "n")
    for name, score in after.items():
        columns = [str(some[name]) if name in some else "" for some in (before, after, given)]
        table.add_row(name, *columns, str(score.n))
    console.print(table)
    console.print(
        f"{len(found.recorded.examples)} requests, {how}; 95 % intervals. given the answer: the "
        "text of the unedited model after prompt and answer.",
        style="dim",
    )
    for number, why in found.refused.items():
        console.print(f"request {number} was refused: {why}", style="yellow", highlight=False)
    for path in files:
        console.print(f"written: {path}", highlight=False, markup=False)
    for one in missed:
        console.print(one, style="bold red", highlight=False)
