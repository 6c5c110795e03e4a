"""Runs the demo's last part: edits all facts one after another, and verifies each.

Knows EasyEdit's editor and the demo's facts; edits nothing by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyedit_mend_parallel.demo.facts import DemoFact
from easyedit_mend_parallel.editor import rollback_all
from easyedit_mend_parallel.evaluation.verification import verify
from easyedit_mend_parallel.forward.requests import Request


def edit_one_after_another(editor: Any, facts: Sequence[DemoFact], console: Console) -> bool:
    """Edit every fact in the model of EasyEdit's `editor`, verify all, and undo all.

    Returns whether every fact is the model's answer while all edits are in the model.
    """
    model, tokenizer = editor.model, editor.tok
    console.print(
        f"all {len(facts)} facts, one after another, in one model (the first time, the inputs of "
        "preserved text are gathered: half a minute) ..."
    )
    started = time.perf_counter()
    editor.edit(
        prompts=[fact.prompt for fact in facts],
        target_new=[fact.target_new for fact in facts],
        ground_truth=[fact.ground_truth for fact in facts],
        sequential_edit=True,
        verbose=False,
    )
    seconds = time.perf_counter() - started
    verdicts = verify(model, tokenizer, [Request(f.prompt, f.target_new) for f in facts])
    table = Table("fact", "the model's answer with all edits in", "probability", "")
    for fact, one in zip(facts, verdicts, strict=True):
        table.add_row(
            fact.subject,
            escape(one.answer),
            f"{one.probability:.1%}",
            "holds" if one.holds else "[red]lost[/red]",
        )
    console.print(table)
    held = sum(one.holds for one in verdicts)
    console.print(
        f"{held} of {len(facts)} hold ({seconds:.0f} s, EasyEdit's own evaluation included)",
        highlight=False,
    )
    rollback_all(model)
    return held == len(facts)
