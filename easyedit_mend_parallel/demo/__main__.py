"""Edits facts that SmolLM2 knows, with its blocks in different places, and checks the result.

    python -m easyedit_mend_parallel.demo [--placement NAME]

For each fact it shows the answers before and after the edit, to the prompt, a rephrase and an
unrelated prompt. It checks that the weights equal those of an edit on one device, and that rollback
restores every bit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.facts import DEMO_FACTS, DemoFact
from easyedit_mend_parallel.demo.hundred import edit_a_hundred
from easyedit_mend_parallel.demo.placements import NAMES, Spread, choices, spread
from easyedit_mend_parallel.demo.sequence import edit_one_after_another
from easyedit_mend_parallel.demo.smollm2 import DemoError, prepare
from easyedit_mend_parallel.errors import MendParallelError
from easyedit_mend_parallel.evaluation import continuations
from easyedit_mend_parallel.weights.placement import place
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.target import Target

SENTENCE_TOKENS = 12
"""How many tokens the model writes by itself after each prompt, before an edit and after it."""
SAME_EDIT = 1e-5
"""The bound: this fraction of the largest change, plus one unit in the last place of the weight."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo with these command-line arguments (default: the process's own)."""
    parser = argparse.ArgumentParser(prog="python -m easyedit_mend_parallel.demo")
    parser.add_argument(
        "--placement",
        choices=NAMES,
        help="where the blocks are (default: the best this machine supports, then simulated)",
    )
    named = parser.parse_args(arguments).placement
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if named:
            return show(named, console)
        first = choices()[0]
        failed = show(first, console)
        if first == "two-gpus":
            return failed
        return failed or show_simulated(console)
    except MendParallelError as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}")
        return 1


def show_simulated(console: Console) -> int:
    """The second pass, in a new process, since a simulated accelerator cannot be removed."""
    if importlib.util.find_spec("simulated_accelerators") is None:
        console.print(
            "The second pass needs the simulated accelerators of this project's tests: "
            "`make demo` in a clone runs it."
        )
        return 0
    command = [sys.executable, "-W", "ignore", "-m", "easyedit_mend_parallel.demo"]
    return subprocess.run([*command, "--placement", "simulated"], check=False).returncode


def show(name: str, console: Console) -> int:
    """One pass: load, edit each fact, compare, roll back. Returns 0 if everything succeeded."""
    started = time.perf_counter()
    _refuse_without("easyeditor", "a clone of EasyEdit, or its release")
    if name == "simulated":
        _refuse_without("simulated_accelerators", "the folder tests of a clone of this project")
        importlib.import_module("simulated_accelerators").load()
    logging.disable(logging.WARNING)  # EasyEdit logs every metric
    with tempfile.TemporaryDirectory() as folder:
        where = spread(name, folder)
        console.rule(f"SmolLM2-135M-Instruct: {where.says}")
        console.print("loading the model through EasyEdit's BaseEditor ...")
        home = os.getcwd()
        os.chdir(folder)  # EasyEdit writes its logs where it is run
        try:
            held = edit_facts(where, console, hundred=name != "simulated")
        finally:
            os.chdir(home)
    console.print(f"{name}: {time.perf_counter() - started:.0f} seconds\n")
    return 0 if held else 1


def _refuse_without(module: str, where: str) -> None:
    """Raise DemoError if `module`, which is in `where`, cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise DemoError(f"this demo needs {module}, which is not here: put {where} on PYTHONPATH")


def edit_facts(where: Spread, console: Console, hundred: bool) -> bool:
    import easyeditor

    directory = str(prepare())
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    hparams.model_name = hparams.tokenizer_name = directory
    hparams.archive = str(demo_archive())
    hparams.model_kwargs, hparams.device = where.model_kwargs, where.device
    editor = easyeditor.BaseEditor.from_hparams(hparams)
    model, tokenizer = editor.model, editor.tok

    plain = MENDParallelHyperParams.from_hparams(demo_hparams())
    plain.archive = hparams.archive
    one_device = type(model).from_pretrained(directory).eval()
    reference = MendParallel(one_device, tokenizer, plain)
    targets = reference.targets
    print_places(model, targets, console)

    table = Table("fact", "prompt", "rephrase", "unrelated", "edit", "one device", "rollback")
    held = True
    written: list[tuple[str, str, str]] = []
    prompts = [fact.prompt for fact in DEMO_FACTS]
    sentences = continuations(model, tokenizer, prompts, SENTENCE_TOKENS)
    for fact, sentence in zip(DEMO_FACTS, sentences, strict=True):
        before = answers(model, tokenizer, fact)
        _, _, weights_copy = editor.edit(
            prompts=[fact.prompt],
            target_new=[fact.target_new],
            ground_truth=[fact.ground_truth],
            rephrase_prompts=[fact.rephrase_prompt],
            sequential_edit=True,
            verbose=False,
        )
        after = answers(model, tokenizer, fact)
        (now,) = continuations(model, tokenizer, [fact.prompt], SENTENCE_TOKENS)
        written.append((fact.prompt, sentence, now))
        result = reference.edit({"prompt": fact.prompt, "target_new": fact.target_new})
        apart = beyond_rounding(kept_weights(model, targets), one_device, result)
        result.rollback()
        weights_copy()
        restored = all(
            torch.equal(weight, one_device.get_parameter(name))
            for name, weight in kept_weights(model, targets).items()
        )
        held &= restored and apart <= SAME_EDIT and after[0] == fact.target_new.strip()
        table.add_row(
            fact.subject,
            *(f"{old} → {new}" for old, new in zip(before, after, strict=True)),
            f"{weights_copy.result.seconds:.2f} s",
            "same weights" if apart <= SAME_EDIT else f"[red]{apart:.0e} of ΔW apart[/red]",
            "every bit" if restored else "[red]differs[/red]",
        )
    console.print(table)
    for prompt, *texts in written:
        for when, text in zip(("before", "after"), texts, strict=True):
            said = escape(" ".join(text.split()))
            console.print(f"{when:>6}  {escape(prompt)} [bold]{said}[/]", highlight=False)
    console.print(
        "one device: the weights equal those of the same edit on one device, within "
        f"{SAME_EDIT} of the largest change plus one unit in the last place. "
        "rollback: they are again, bit for bit, what they were.",
        style="dim",
    )
    held &= edit_one_after_another(editor, DEMO_FACTS, console)
    if hundred:
        held &= edit_a_hundred(model, tokenizer, console)
    return held and all(
        torch.equal(weight, one_device.get_parameter(name))
        for name, weight in kept_weights(model, targets).items()
    )


def print_places(model: Any, targets: list[Target], console: Console) -> None:
    """Print the number of blocks in each place, and the place of each target."""
    where: dict[str, list[str]] = {}
    for block, mapped in model.hf_device_map.items():
        where.setdefault(str(mapped), []).append(block.removeprefix("model."))
    for somewhere, blocks in where.items():
        console.print(f"  {somewhere}: {blocks[0]} … {blocks[-1]} ({len(blocks)} modules)")
    places: dict[str, list[str]] = {}
    for target in targets:
        found = place(model, target)
        if found.kept == "resident":
            says = f"on {found.device}"
        else:
            says = f"offloaded (kept as {found.kept}), computing on {found.device}"
        places.setdefault(says, []).append(target.name.removeprefix("model.layers."))
    for says, names in places.items():
        console.print(f"  targets {says}: {', '.join(names)}", highlight=False)


def kept_weights(model: Any, targets: list[Target]) -> dict[str, torch.Tensor]:
    """The targets' weights as the next forward pass will use them, on any placement."""
    return {target.name: store_for(model, target).read().cpu() for target in targets}  # type: ignore[attr-defined]


def answers(model: Any, tokenizer: Any, fact: DemoFact) -> list[str]:
    """The model's answers to the fact's prompt, its rephrase, and the unrelated prompt."""
    n_tokens = len(tokenizer(fact.target_new)["input_ids"])
    asked = [
        (fact.prompt, n_tokens),
        (fact.rephrase_prompt, n_tokens),
        (fact.unrelated_prompt, len(tokenizer(fact.unrelated_answer)["input_ids"])),
    ]
    return [answer(model, tokenizer, prompt, n) for prompt, n in asked]


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: str, n_tokens: int) -> str:
    """The continuation of `prompt` by `n_tokens` tokens, greedily."""
    ids = list(tokenizer(prompt)["input_ids"])
    for _ in range(n_tokens):
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    text: str = tokenizer.decode(ids[-n_tokens:])
    return text.strip() or repr(text)


def beyond_rounding(weights: dict[str, torch.Tensor], one_device: Any, result: Any) -> float:
    """The largest difference between the spread model's weights and those of the edit on one
    device, as a fraction of max |ΔW|, beyond one unit in the last place of the weight."""
    apart = 0.0
    for name, weight in weights.items():
        edited = one_device.get_parameter(name).detach()
        change = (edited - result.entry.before()[name]).abs().max()
        unit = torch.nextafter(edited.abs(), torch.tensor(torch.inf)) - edited.abs()
        beyond = (weight - edited).abs() - unit
        apart = max(apart, float(beyond.max().clamp(min=0) / change))
    return apart


if __name__ == "__main__":
    sys.exit(main())
