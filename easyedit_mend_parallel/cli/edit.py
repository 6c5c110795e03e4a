"""`mend-parallel edit`: makes edits, shows their effect, and saves them in a journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyedit_mend_parallel.cli.where import progress

LOST = 4
"""The exit code if a request does not hold afterwards."""
SHOWN = 40
"""Maximum number of verdicts shown. If there are more, only the lost ones are."""

if TYPE_CHECKING:
    from easyedit_mend_parallel.evaluation.verification import Verdict
    from easyedit_mend_parallel.forward.requests import Request


def command(
    config: Annotated[Path, typer.Argument(help="A hyperparameter file (yaml or json).")],
    requests: Annotated[
        Path, typer.Option(help="What to edit: JSON lines with prompt and target_new, or zsRE.")
    ],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The journal in which to save the edits.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Make one edit of all requests, not one of each.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Save rows as bfloat16: half the size.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not verify every request afterwards.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Edit the model that CONFIG names, show the effect on each request, and save the edits.

    The edits of the journal are applied first. Afterwards every request is verified, those of the
    journal too. Exit code 4: one of them does not hold. After an interrupt, the journal has the
    edits that were finished.
    """
    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.editor import MendParallel
    from easyedit_mend_parallel.edits.journal import Journal
    from easyedit_mend_parallel.evaluation.answers import NEW, PROMPT, answers_of, probabilities
    from easyedit_mend_parallel.evaluation.verification import verify
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams

    hparams = MENDParallelHyperParams.from_hparams(config)
    wanted = read_requests(requests)
    earlier = [] if save is None else Journal(save).applied  # raises before a model is loaded
    model, tokenizer = load_model(hparams)
    editor = MendParallel(model, tokenizer, hparams)
    journal = None
    with progress(as_json) as bars:
        if save is not None:
            bar = bars.add_task("applying earlier edits", total=len(earlier))
            journal = Journal(save).apply_to(
                model,
                apply=hparams.apply,
                hold=False,
                scoping=editor.scoping,
                progress=lambda _number: bars.advance(bar),
            )
        answers = [one for one in answers_of(model, tokenizer, wanted) if one.kind == PROMPT]
        before = probabilities(model, tokenizer, answers)
        parts = [wanted] if together else [[request] for request in wanted]
        bar = bars.add_task("editing", total=len(parts))
        made: list[dict[str, Any]] = []
        for part in parts:
            result = editor.edit(part)
            entry = journal and journal.add(result, half=half)
            made.append(
                {
                    "number": entry and entry.number,
                    "requests": len(part),
                    "seconds": result.seconds,
                    "norms": result.norms,
                }
            )
            bars.advance(bar)
        after = probabilities(model, tokenizer, answers)
        texts = written_after(model, tokenizer, wanted, chat=hparams.chat)
        verdicts: list[Verdict] = []
        if not no_verify:
            kept = [] if save is None else [Journal(save).edit(number) for number in earlier]
            every = [*(request for edit in kept for request in edit.requests), *wanted]
            last = {request.prompt: request for request in every}
            verdicts = verify(model, tokenizer, list(last.values()))
    lost = [verdict for verdict in verdicts if not verdict.holds]
    rows = [
        {
            "edit": made[0 if together else answer.request]["number"],
            "prompt": answer.prompt,
            "role": answer.role,
            "answer": answer.answer,
            "before": was,
            "after": now,
        }
        for answer, was, now in zip(answers, before, after, strict=True)
    ]
    if as_json:
        held = [
            {
                "prompt": one.request.prompt,
                "target_new": one.request.target_new,
                "answer": one.answer,
                "probability": one.probability,
                "holds": one.holds,
            }
            for one in verdicts
        ]
        found = {"journal": save and str(save), "edits": made, "answers": rows}
        found |= {"verified": held, "texts": texts}
        print(json.dumps(found, indent=2))
        if lost:
            raise typer.Exit(LOST)
        return
    console = Console()
    table = Table("edit", "prompt", "answer", "", "before", "after")
    for row in rows:
        table.add_row(
            str(row["edit"] or ""),
            escape(row["prompt"]),
            escape(row["answer"]),
            row["role"],
            f"{row['before']:.1%}",
            f"{row['after']:.1%}",
            style=None if row["role"] == NEW else "dim",
        )
    console.print(table)
    for text in texts:
        said = escape(" ".join(text["text"].split()))
        console.print(f"{escape(text['prompt'])} [bold]{said}[/]", highlight=False)
    console.print("probability per token, before the first edit and after the last", style="dim")
    if save is None:
        console.print("not kept: name a journal with --save", style="dim")
    else:
        console.print(f"kept in {escape(str(save))}: {len(made)}", highlight=False)
    if verdicts:
        _show_verdicts(console, verdicts, lost)
    if lost:
        raise typer.Exit(LOST)


def _show_verdicts(console: Console, verdicts: list[Verdict], lost: list[Verdict]) -> None:
    """Print for each request whether it holds, and the model's answer."""
    table = Table("", "prompt", "target", "the model's answer", "probability")
    shown = verdicts if len(verdicts) <= SHOWN else lost
    for one in shown[:SHOWN]:
        table.add_row(
            "holds" if one.holds else "lost",
            escape(one.request.prompt),
            escape(one.request.target_new.strip()),
            escape(one.answer),
            f"{one.probability:.1%}",
            style=None if one.holds else "red",
        )
    if shown:
        console.print(table)
    held = len(verdicts) - len(lost)
    console.print(f"{held} of {len(verdicts)} requests in the model hold", highlight=False)


def written_after(
    model: Any, tokenizer: Any, requests: Sequence[Request], *, chat: bool
) -> list[dict[str, str]]:
    """The text that the model currently generates after each request's prompt, in batches."""
    from easyedit_mend_parallel.evaluation import continuations
    from easyedit_mend_parallel.forward.chat import in_chat

    prompts = [in_chat(tokenizer, one.prompt) if chat else one.prompt for one in requests]
    each = zip(requests, continuations(model, tokenizer, prompts), strict=True)
    return [{"prompt": request.prompt, "text": text} for request, text in each]


def read_requests(path: Path) -> list[Request]:
    """The edits of a file, each with the texts that test it. Raises DataError."""
    from easyedit_mend_parallel.evaluation.data import read_examples
    from easyedit_mend_parallel.evaluation.examples import with_texts

    examples, _ = read_examples(path)
    return [with_texts(example) for example in examples]
