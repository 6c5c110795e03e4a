"""Runs the demo's part with a hundred scoped facts in one model: edits, verifies, undoes.

Knows the model as it is placed; changes no weight of it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.facts import DEMO_FACTS
from easyedit_mend_parallel.editor import MendParallel
from easyedit_mend_parallel.evaluation import continuations
from easyedit_mend_parallel.evaluation.verification import verify
from easyedit_mend_parallel.forward.requests import Request, as_requests
from easyedit_mend_parallel.hparams import MENDParallelHyperParams

CAPITALS = Path(__file__).with_name("capitals.jsonl")
SHOWN = 3
"""How many facts are shown with what the model writes after them."""
TOKENS = 12
NEEDED = 0.97
"""The share of the facts that has to be the model's answer for the demo to succeed."""


def swapped_capitals() -> list[dict[str, str]]:
    """A request for each country of `CAPITALS`: its capital shall be that of the next one."""
    rows = [json.loads(line) for line in CAPITALS.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "prompt": f"The capital of {row['country']} is",
            "target_new": f" {after['capital']}",
            "subject": row["country"],
        }
        for row, after in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]


def edit_a_hundred(model: Any, tokenizer: Any, console: Console) -> bool:
    """Edit a hundred facts into `model` at once with `apply: scoped`, verify all, and undo all.

    Returns whether nearly every fact is the model's answer, other text has the base's logits to the
    bit, and so has everything after the undo.
    """
    asked = swapped_capitals()
    others = [fact.unrelated_prompt for fact in DEMO_FACTS]
    before = _logits(model, tokenizer, others)
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    hparams.archive, hparams.apply = str(demo_archive(scoped=True)), "scoped"
    console.print(f"{len(asked)} facts in one model, each with a scope (apply: scoped) ...")
    started = time.perf_counter()
    editor = MendParallel(model, tokenizer, hparams)
    result = editor.edit(as_requests(asked))
    seconds = time.perf_counter() - started
    verdicts = verify(model, tokenizer, [Request(r["prompt"], r["target_new"]) for r in asked])
    held = sum(one.holds for one in verdicts)
    same = torch.equal(before, _logits(model, tokenizer, others))
    shown = [request["prompt"] for request in asked[:SHOWN]]
    for prompt, text in zip(shown, continuations(model, tokenizer, shown, TOKENS), strict=True):
        said = escape(" ".join(text.split()))
        console.print(f"{'now':>6}  {escape(prompt)} [bold]{said}[/]", highlight=False)
    result.rollback()
    back = torch.equal(before, _logits(model, tokenizer, others))
    console.print(
        f"{held} of {len(asked)} hold; {len(others)} unrelated prompts: "
        f"{'every bit as before' if same else '[red]changed[/red]'}; undone: "
        f"{'every bit' if back else '[red]differs[/red]'} ({seconds:.0f} s)",
        highlight=False,
    )
    return same and back and held >= NEEDED * len(asked)


@torch.no_grad()
def _logits(model: Any, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """(prompts, vocabulary) on the CPU: the logits after each prompt, run one by one."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
        rows.append(model(input_ids=ids, use_cache=False).logits[0, -1].cpu())
    return torch.stack(rows)
