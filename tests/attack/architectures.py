"""Edits a tiny model of every causal and encoder-decoder family in transformers, and says of each:
works, refused with which error, or wrong.

`python -m attack.architectures` (with PYTHONPATH=tests) prints the table of docs/architectures.md.
Knows no family.
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from toys import OBSERVED, REQUESTS, same_bits, toy_hparams, toy_network, toy_tokenizer, weights
from transformers.pytorch_utils import Conv1D

from attack.tiny import call_plainly, families, tiny_model
from easyedit_mend_parallel import (
    MendParallel,
    MendParallelError,
    export_peft,
    load_edit,
    rollback_all,
)
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture, evaluating
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import find_targets

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
ORDER = ("wrong", "refused", "works", "not built")
HEAD = """# Architectures

Which families of transformers can be edited. A script builds a model of a few thousand parameters
of every causal and encoder-decoder family that transformers {version} names, with random weights,
and edits one weight of each kind of linear layer, that of the deepest block. It compares the token
rows with the weight's true gradient, a batch of three with its requests alone, `apply: output` with
`apply: weight`, each undo with the bits before, a saved edit that is applied with the edited model,
the PEFT export (peft {peft}) with the edited model, and a sequence of five edits, solved together
and without the third, with the other four.

Of {all} families {built} can be built from small numbers alone: {works} work, {refused} are refused
with an error that says why, {wrong} are wrong. The other {rest} are [below](#not-built).

This says nothing about how good edits are. Written by:

<!-- long -->
```sh
PYTHONPATH=.:tests .venv/bin/python -m attack.architectures --write
```

| family | class | result | what is refused with which error |
| --- | --- | --- | --- |"""
REST = """Their configurations need more than small numbers, their own forward fails on such a
model, or building took too long. Nothing is claimed of them."""
SECONDS = 120
"""After so long a family counts as not finished."""
ALIKE = 5e-3
"""Relative difference up to which two computations of one thing are equal, in fp32."""
FIVE = [*REQUESTS[:2], *OBSERVED[:3]]
TEXT = "the capital of France is Paris and who wrote Hamlet"


class NoEffectError(MendParallelError):
    """An edit of a weight on which these predictions do not depend."""


class WrongError(Exception):
    """What came out is another thing than what was asked for."""


@dataclass
class Found:
    """What was seen of one family. `refused` is {error's text: names of targets}."""

    family: str
    kind: str
    status: str = "works"
    edited: list[str] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)
    why: str = ""
    notes: list[str] = field(default_factory=list)


def check(family: str) -> Found:
    """Everything that is claimed of one family."""
    found = Found(family, families()[family][0])
    try:
        model = tiny_model(family)
    except Exception as error:
        found.status, found.why = "not built", _said(error)
        return found
    tokenizer = toy_tokenizer(eos=bool(getattr(model.config, "is_encoder_decoder", False)))
    try:
        _check(found, model, tokenizer)
    except MendParallelError as error:
        found.status, found.why = "refused", _said(error)
        _look_at_forward(found, model, (RuntimeError, AttributeError, NotImplementedError))
    except WrongError as error:
        found.status, found.why = "wrong", str(error)
        _look_at_forward(found, tiny_model(family), (Exception,))
    return found


def _look_at_forward(found: Found, model: Any, errors: tuple[type[Exception], ...]) -> None:
    """Say that a family was not built where its own forward fails on a text."""
    try:
        call_plainly(model)
    except errors as itself:
        found.status = "not built"
        found.why = f"its own forward fails: {_said(itself)}"
    except Exception:
        return


def _check(found: Found, model: Any, tokenizer: Any) -> None:
    try:
        _life(found, model, tokenizer)
    except (MendParallelError, WrongError):
        raise
    except Exception as error:
        raise WrongError(f"raises {_said(error)}") from error


def _life(found: Found, model: Any, tokenizer: Any) -> None:
    names = candidates(model)
    base = weights(model)
    plain = copy.deepcopy(model)
    works, first = [], None
    for name in names:
        try:
            _one_target(model, tokenizer, name)
        except MendParallelError as error:
            first = first or error
            found.refused.setdefault(_said(error).replace(name, "…"), []).append(name)
            _same(model, base, f"{name} was refused, and a weight changed")
        except WrongError as error:
            raise WrongError(f"{name}: {error}") from error
        except Exception as error:
            raise WrongError(f"{name} raises {_said(error)}") from error
        else:
            works.append(name)
    if not works:
        raise first or MendParallelError("no linear layer")
    found.edited = works
    some = works[-6:]
    # Statistics of three requests make inputs that were constant in them huge.
    network = toy_network(model, tokenizer, some, edit_lr=1e-3, norm=False)

    def editor(of: Any, **options: Any) -> MendParallel:
        return MendParallel(
            of, tokenizer, toy_hparams(some, norm=False, **options), network=network
        )

    _kept(found, model, plain, tokenizer, editor(model), base)
    _five(editor, model, base)


def candidates(model: Any) -> list[str]:
    """One weight for each kind of linear layer: that of the deepest block. Output layers are not
    among them."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kinds = {
        re.sub(r"\d+", "{}", name): f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head
    }
    return list(kinds.values())


def _one_target(model: Any, tokenizer: Any, name: str) -> None:
    """The rows of one weight give its gradient; a batch is the sum of its requests; undo is exact;
    `apply: output` gives the same logits."""
    network = toy_network(model, tokenizer, [name], edit_lr=1e-3)
    editor = MendParallel(model, tokenizer, toy_hparams([name]), network=network)
    _gradient(model, tokenizer, name)
    base = weights(model, [name])
    total: Tensor | None = None
    for request in REQUESTS:
        result = editor.edit(request)
        one = dense(result, name)
        total = one if total is None else total + one
        if not dense(result, name).any() and same_bits(
            model.get_parameter(name).detach(), base[name]
        ):
            result.rollback()
            raise NoEffectError("no effect: its gradient is zero, and the edit leaves it as it is")
        result.rollback()
        _same(model, base, "an undo")
    batch = editor.edit(REQUESTS)
    _alike(dense(batch, name), total, "a batch of three is not the sum of its requests")
    written = logits(model, tokenizer)
    batch.rollback()
    _same(model, base, "an undo of a batch")
    before = logits(model, tokenizer)
    outputs = MendParallel(model, tokenizer, toy_hparams([name], apply="output"), network=network)
    hung = outputs.edit(REQUESTS)
    _alike(
        logits(model, tokenizer), written, "`weight` and `output` give other logits", before=before
    )
    hung.rollback()
    if not same_bits(logits(model, tokenizer), before):
        raise WrongError("an undo of an edit of outputs leaves other logits")


def _gradient(model: Any, tokenizer: Any, name: str) -> None:
    batch = make_batch(model, tokenizer, as_requests(REQUESTS))
    [rows] = capture(model, find_targets(model, [name]), batch)[0].values()
    weight = model.get_parameter(name)
    with evaluating(model), torch.enable_grad():
        needed = {one: one.requires_grad for one in model.parameters()}
        for one in needed:
            one.requires_grad_(one is weight)
        [true] = torch.autograd.grad(batch.losses_on(model).sum(), [weight])
        for one, flag in needed.items():
            one.requires_grad_(flag)
    made = rows.delta.T @ rows.x
    is_linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
    _alike(made if is_linear else made.T, true, "its rows do not give its gradient")


def _kept(
    found: Found, model: Any, plain: Any, tokenizer: Any, editor: MendParallel, base: Any
) -> None:
    """An edit is saved, applied to a fresh model, and exported for PEFT."""
    result = editor.edit(REQUESTS)
    now, edited = logits(model, tokenizer), weights(model)
    before = logits(plain, tokenizer)
    adapted = None
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "edit")
        fresh = copy.deepcopy(plain)
        load_edit(path).apply(fresh)
        _same(fresh, edited, "a saved edit that was applied")
        adapter = export_peft(load_edit(path), Path(folder) / "adapter")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                adapted = peft.PeftModel.from_pretrained(copy.deepcopy(plain), adapter).eval()
        except (ValueError, AttributeError, TypeError, KeyError, RuntimeError) as error:
            found.notes.append(f"peft cannot load the adapter: {_said(error)}")
            said = []
        missing = [one for one in said if "missing adapter keys" in str(one.message)]
        if missing:
            found.notes.append("peft warns that it loads the adapter without a part of it")
        elif adapted is not None:
            with torch.no_grad():
                got = read(adapted, tokenizer, like=plain)
            _alike(got, now, "the PEFT export gives other logits", before=before)
    result.rollback()
    _same(model, base, "an undo after saving")


def _five(editor: Callable[..., MendParallel], model: Any, base: Any) -> None:
    """Five edits solved together; without the third they are the other four."""
    solve = {"aggregate": "least_squares", "sequence": "solve"}
    one = editor(model, **solve)
    results = [one.edit(request) for request in FIVE]
    results[2].rollback()
    got = {name: weight.clone() for name, weight in weights(model).items()}
    rollback_all(model)
    _same(model, base, "rollback_all after a sequence")
    again = editor(model, **solve)
    kept = [again.edit(request) for request in (*FIVE[:2], *FIVE[3:])]
    for name in (target.name for target in again.targets):
        expected = weights(model, [name])[name]
        _alike(got[name] - base[name], expected - base[name], f"an undo in a sequence: {name}")
    del kept
    rollback_all(model)
    _same(model, base, "rollback_all after a second sequence")


def dense(result: Any, name: str) -> Tensor:
    update = result.updates[name]
    return update.values.float().T @ update.keys.float()


def logits(model: Any, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        return read(model, tokenizer, like=model)


def read(model: Any, tokenizer: Any, *, like: Any) -> Tensor:
    asked = {"prompt": TEXT, "target_new": "Rome"}
    found: Tensor = make_batch(like, tokenizer, as_requests(asked)).logits(model).float()
    return found


def _alike(got: Tensor, wanted: Tensor | None, what: str, before: Tensor | None = None) -> None:
    assert wanted is not None
    scale = (wanted if before is None else wanted - before).abs().max()
    rounding = 0.0 if before is None else 2e-5 * float(wanted.abs().max())
    apart = (got - wanted).abs().max()
    if not apart <= ALIKE * scale + rounding:
        raise WrongError(f"{what}: {float(apart / scale):.2g} of it off")


def _same(model: Any, before: dict[str, Tensor], what: str) -> None:
    now = dict(model.named_parameters())
    for name, weight in before.items():
        if not same_bits(now[name].detach(), weight):
            raise WrongError(f"{what} left other bits in {name}")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def check_apart(names: Sequence[str], say: Callable[[Found], None]) -> list[Found]:
    """`check` of each family in a process of its own, so that none can break another."""
    context = multiprocessing.get_context("fork")
    found = []
    for name in names:
        mine, theirs = context.Pipe(duplex=False)

        def run(name: str = name, theirs: Any = theirs) -> None:
            theirs.send(check(name))

        process = context.Process(target=run)
        process.start()
        theirs.close()
        one = Found(name, families()[name][0], "not built", why=f"not finished in {SECONDS} s")
        try:
            if mine.poll(SECONDS):
                one = mine.recv()
        except EOFError:
            one.status, one.why = "wrong", "the process died"
        process.kill()
        process.join()
        found.append(one)
        say(one)
    return found


def quiet() -> None:
    """Silence what families say while they are made; one thread."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def say(one: Found) -> None:
    print(f"{one.status:10} {one.family}: {one.why[:300]}")
    for why, names in one.refused.items():
        print(f"           refused {len(names)} ({names[0]}): {why[:200]}")
    for note in one.notes:
        print(f"           {note[:200]}")
    sys.stdout.flush()


def page(found: Sequence[Found]) -> str:
    """docs/architectures.md."""
    count = Counter(one.status for one in found)
    lines = [
        HEAD.format(
            version=transformers.__version__,
            peft=peft.__version__,
            all=len(found),
            built=len(found) - count["not built"],
            works=count["works"],
            refused=count["refused"],
            wrong=count["wrong"],
            rest=count["not built"],
        )
    ]
    for one in sorted(found, key=lambda one: (ORDER.index(one.status), one.family)):
        if one.status == "not built":
            continue
        says = [one.why] if one.why else []
        if one.status == "works":
            says += [f"not {_short(names)}: {why}" for why, names in one.refused.items()]
        says += one.notes
        text = _cell("; ".join(says))
        lines.append(f"| `{one.family}` | `{one.kind}` | {one.status} | {text} |")
    lines += ["", "## Not built", "", REST, "", "| family | why |", "| --- | --- |"]
    lines += [
        f"| `{one.family}` | {_cell(one.why)} |" for one in found if one.status == "not built"
    ]
    return "\n".join(lines) + "\n"


def _short(names: Sequence[str]) -> str:
    leaves = sorted({name.split(".")[-2] for name in names})
    return ", ".join(f"`{leaf}`" for leaf in leaves)


def _cell(text: str) -> str:
    text = text.replace("|", "/").replace("<", "‹").replace(">", "›").replace("*", "·")
    text = text.replace("_", "\\_").replace("[", "(").replace("]", ")")
    return text if len(text) < 260 else text[:257] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    asked = parser.parse_args()
    quiet()
    found = check_apart(asked.families or list(families()), say)
    print(dict(Counter(one.status for one in found)))
    if asked.write:
        PAGE.write_text(page(found), encoding="utf-8")
    if any(one.status == "wrong" for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
