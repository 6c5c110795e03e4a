"""Things that are done to a toy model and to files, each on a fresh scene, and what can be seen of
the scene before and after. Knows nothing of faults.
"""

from __future__ import annotations

import copy
import hashlib
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from toys import (
    OBSERVED,
    REQUEST,
    REQUESTS,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    toy_tokenizer,
)

from easyedit_mend_parallel import (
    Journal,
    MendParallel,
    export_delta,
    export_peft,
    load_edit,
    rollback_all,
    save_edited,
)
from easyedit_mend_parallel.files import read_tensors
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import kept_weight

BLOCKS = 3
SOLVE = {"aggregate": "least_squares", "sequence": "solve"}
NEXT = {"prompt": "some people say that the", "target_new": "red stone never moves"}


@dataclass
class Scene:
    """A model with its editor, a folder, and what is to be done. `undoes`: it may also be done
    wholly with the exception raised, since it holds nothing that only its caller has."""

    model: Any
    editor: MendParallel | None
    folder: Path
    act: Callable[[], Any]
    undoes: bool = True
    held: list[Any] = field(default_factory=list)
    journal: Journal | None = None

    def seen(self) -> dict[str, Any]:
        """All that a fault could leave behind."""
        model, found = self.model, dict[str, Any]()
        if self.editor is not None:
            with torch.no_grad():
                found["logits"] = _sum(model(input_ids=torch.arange(4, 16)[None]).logits)
        found["weights"] = {name: _sum(one) for name, one in tensors_of(model)}
        found["hooks"] = [
            (name, len(one._forward_hooks), len(one._forward_pre_hooks), "forward" in vars(one))
            for name, one in model.named_modules()
        ]
        found["flags"] = [(one.requires_grad, one.grad is None) for one in model.parameters()] + [
            one.training for one in model.modules()
        ]
        # of a training run, which writes files all along, those of an interrupted write
        found["files"] = {
            str(path.relative_to(self.folder)): path.is_dir() or _file(path)
            for path in sorted(self.folder.rglob("*"))
            if self.editor is not None or path.name.startswith(".")
        }
        if self.journal is not None:
            now = Journal(self.folder / "journal")
            for name, one in (("journal", self.journal), ("index", now)):
                found[name] = [(e.number, e.file, e.applied, e.squashed_into) for e in one.entries]
            found["revision"] = self.journal._revision == now._revision
        return found

    def around(self) -> dict[str, Any]:
        """What is outside of the scene, and is the same before and after."""
        return {
            "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
            "python's random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
            "temporary files": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
            "signal": signal.getsignal(signal.SIGINT),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "locked": Ledger.of(self.model).lock._is_owned(),  # type: ignore[attr-defined]
        }


def tensors_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter's name and its values, wherever they are."""
    for name, one in model.named_parameters():
        yield name, kept_weight(model, name) if one.device.type == "meta" else one  # type: ignore


def _sum(tensor: torch.Tensor) -> str:
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()


def _file(path: Path) -> str:
    """What kind of file it is; of one that is cut, its error."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix != ".dat" and head[8:] == b"{":
        return f"safetensors of {len(read_tensors(path)[0])}"
    return "written" if head else "empty"


@cache
def _base(dtype: torch.dtype) -> Any:
    return toy_model("llama", blocks=BLOCKS, dtype=dtype)


@cache
def _network() -> Any:
    base = _base(torch.float32)
    return toy_network(base, toy_tokenizer(), _names(base))


def _names(model: Any) -> list[str]:
    names = toy_targets(model, 2)
    return [names[0], names[-1]]


def scene(
    folder: Path, *, dtype: torch.dtype = torch.float32, kept: str = "resident", **options: Any
) -> Scene:
    model = copy.deepcopy(_base(dtype))
    names = _names(model)
    if kept != "resident":
        import accelerate

        vars(model)["_addresses"] = [one.detach() for one in model.parameters()]
        cpu = torch.device("cpu")
        model = (
            accelerate.cpu_offload(model, execution_device=cpu)
            if kept == "ram"
            else accelerate.disk_offload(model, str(folder / "offload"), execution_device=cpu)
        )
    editor = MendParallel(
        model, tokenizer_for(model), toy_hparams(names, **options), network=_network()
    )
    return Scene(model, editor, folder, lambda: None)


def _editing(requests: Any, earlier: int = 0, **options: Any) -> Callable[[Path], Scene]:
    def make(folder: Path) -> Scene:
        made = scene(folder, **options)
        assert made.editor is not None
        made.held = [made.editor.edit(one) for one in OBSERVED[:earlier]]
        losses_after = options.get("on_worse") is None
        made.act = lambda: made.editor.edit(requests, losses_after=losses_after)  # type: ignore
        made.undoes = False
        return made

    return make


def _undoing(which: int | None, **options: Any) -> Callable[[Path], Scene]:
    def make(folder: Path) -> Scene:
        made = scene(folder, **options)
        assert made.editor is not None
        made.held = [made.editor.edit(one) for one in (REQUEST, *OBSERVED[:2])]
        made.act = (
            (lambda: rollback_all(made.model)) if which is None else made.held[which].rollback
        )
        return made

    return make


def _journal(what: str, **options: Any) -> Callable[[Path], Scene]:
    def make(folder: Path) -> Scene:
        made = scene(folder, **options)
        assert made.editor is not None
        journal = Journal(folder / "journal").apply_to(made.model)
        for one in OBSERVED[:3]:
            journal.add(made.editor.edit(one))
        made.journal = journal
        if what == "add":
            made.held = [made.editor.edit(REQUEST)]
            made.act = lambda: journal.add(made.held[0])
        elif what == "reapply":
            journal.undo(2)
            made.act = lambda: journal.reapply(2)
        elif what == "undo":
            made.act = lambda: journal.undo(2)
        else:
            made.act = lambda: journal.squash(4)
        return made

    return make


def _file_of(what: str) -> Callable[[Path], Scene]:
    def make(folder: Path) -> Scene:
        made = scene(folder, apply="output" if what == "save_edited of outputs" else "weight")
        assert made.editor is not None
        result = made.editor.edit(REQUEST)
        made.held = [result]
        out = folder / "out"
        if what == "save":
            made.act = lambda: result.save(out)
        elif what.startswith("save_edited"):
            made.act = lambda: save_edited(made.model, out)
        elif what == "export_peft":
            made.act = lambda: export_peft(result.saved(), out)
        elif what == "export_delta":
            made.act = lambda: export_delta(result.saved(), out)
        else:
            path = result.save(folder / "edit")
            result.rollback()
            made.act = lambda: made.held.append(load_edit(path).apply(made.model))
            made.undoes = False
        return made

    return make


def _training(folder: Path) -> Scene:
    from trained.runs import trainer

    model = copy.deepcopy(_base(torch.float32))
    made = Scene(model, None, folder, lambda: None)
    run = trainer(
        folder / "run", model=model, max_iters=1, val_interval=10, trunk_memory=0, final_eval=False
    )
    made.act = run.run
    return made


SCENES: dict[str, Callable[[Path], Scene]] = {
    "edit": _editing(REQUEST),
    "edit in bfloat16": _editing(REQUEST, dtype=torch.bfloat16),
    "edit of outputs": _editing(REQUEST, apply="output"),
    "edit in RAM": _editing(REQUEST, kept="ram"),
    "edit on disk": _editing(REQUEST, kept="disk"),
    "second edit": _editing(REQUEST, 1),
    "batch, sum": _editing(REQUESTS),
    "batch, least squares": _editing(REQUESTS, aggregate="least_squares"),
    "max_step": _editing(REQUESTS[:2], aggregate="least_squares", max_step=4, on_worse="ignore"),
    "third edit of a sequence": _editing(REQUEST, 2, **SOLVE),
    "undo": _undoing(2),
    "undo from the middle": _undoing(1),
    "undo from the middle of outputs": _undoing(1, apply="output"),
    "undo from the middle on disk": _undoing(1, kept="disk"),
    "undo in a sequence": _undoing(1, **SOLVE),
    "rollback_all": _undoing(None),
    "rollback_all of outputs": _undoing(None, apply="output"),
    "rollback_all of a sequence": _undoing(None, **SOLVE),
    "journal: add": _journal("add"),
    "journal: undo": _journal("undo"),
    "journal: undo in a sequence": _journal("undo", **SOLVE),
    "journal: reapply": _journal("reapply"),
    "journal: squash": _journal("squash"),
    "save": _file_of("save"),
    "load and apply": _file_of("apply"),
    "save_edited": _file_of("save_edited"),
    "save_edited of outputs": _file_of("save_edited of outputs"),
    "export_peft": _file_of("export_peft"),
    "export_delta": _file_of("export_delta"),
    "training step": _training,
}
"""{what is done: makes its scene in an empty folder}"""
