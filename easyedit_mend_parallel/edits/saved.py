"""Saves edits as files without their model, reads them, and applies them to the same base again.

Knows nothing of how an update was computed.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from easyedit_mend_parallel.edits.base import check_base, target_in
from easyedit_mend_parallel.edits.forms import About, SavedRequest
from easyedit_mend_parallel.edits.scoping import Scoping, check_below
from easyedit_mend_parallel.edits.solving import put_together, rows_as_tensors, rows_of_tensors
from easyedit_mend_parallel.errors import EditError, MendParallelError
from easyedit_mend_parallel.files import is_there, read_tensors, write_tensors
from easyedit_mend_parallel.files.forms import instance_of, of_form
from easyedit_mend_parallel.files.interrupts import made_whole
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.growing_system import SolveRows, SystemOptions
from easyedit_mend_parallel.method.sequence import EditSequence
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import refuse_lost_files
from easyedit_mend_parallel.weights.placement import Placement, place
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores.scoped import SCOPED
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

KIND, FORMAT_VERSION, ADDED_VERSION = "edit", 2, 1
"""In version 1 an edit has no rows to solve: it is added to the edits of a model."""
PARTS = ("keys", "values", "request", "position")
PACKAGES = ("easyedit-mend-parallel", "torch", "transformers", "accelerate")


@dataclass(frozen=True)
class AppliedEdit:
    """A saved edit that was applied to a model; undoes it. References names and no model.

    `unchecked` is {target name: why its weight could not be compared with the edit's base, and
    what was compared instead}; empty if every weight was compared.
    """

    edit: SavedEdit
    placements: dict[str, Placement]
    unchecked: dict[str, str]
    entry: Entry | SequenceEntry

    def rollback(self) -> None:
        """Undo the edit, bit for bit. Later edits stay in the model (see `Entry.undo`)."""
        self.entry.undo()


@dataclass(frozen=True)
class SavedEdit:
    """An edit without its model: rows of `updates` {target name: update}, fp32 on the CPU.

    `positions` {target name: (n,)} are the indices of these rows in the original edit, from which
    rows that add nothing (padding) were left out. `about` is the rest of the file's header: the
    base model and its weights' checksums (`base`), the original number of `rows`, `losses`,
    `placements`, `tokens`, `hparams`, `versions`. `solve_rows` {target name: rows} are the rows of
    the edit in the systems of a sequence with `options`; None for an edit that is only added.
    """

    targets: dict[str, Target]
    updates: dict[str, LowRankUpdate]
    positions: dict[str, Tensor]
    requests: list[Request]
    about: dict[str, Any] = field(default_factory=dict)
    source: str = "the edit"
    solve_rows: dict[str, SolveRows] | None = None
    options: SystemOptions | None = None

    @cached_property
    def norms(self) -> dict[str, float]:
        """{target name: ‖ΔW‖ (Frobenius)}"""
        return {name: float(update.norm()) for name, update in self.updates.items()}

    @property
    def rows(self) -> int:
        """The largest number of rows of any target, an upper bound of the edit's rank."""
        return max((len(update.keys) for update in self.updates.values()), default=0)

    def write(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the edit to `path`, whole or not at all: safetensors with a JSON header.

        `half` stores rows as bfloat16: half the size, with a relative error of at most 2⁻⁸.
        """
        tensors: dict[str, Tensor] = {}
        for name, update in self.updates.items():
            dtype = torch.bfloat16 if half else torch.float32
            tensors[f"{name}.keys"] = update.keys.to(dtype)
            tensors[f"{name}.values"] = update.values.to(dtype)
            tensors[f"{name}.request"] = update.request.to(torch.int32)
            tensors[f"{name}.position"] = self.positions[name].to(torch.int32)
        header: dict[str, Any] = {
            "kind": KIND,
            "format_version": ADDED_VERSION,
            "targets": [asdict(target) for target in self.targets.values()],
            "requests": [_plain(request) for request in self.requests],
            "about": self.about,
        }
        if self.solve_rows is not None and self.options is not None:
            more, system = rows_as_tensors(self.solve_rows, self.options)
            tensors |= more
            header |= {"format_version": FORMAT_VERSION, "system": system}
        write_tensors(Path(path), tensors, header)
        return Path(path)

    def apply(
        self,
        model: nn.Module,
        apply: str = "weight",
        *,
        check: bool = True,
        scoping: Scoping | None = None,
    ) -> AppliedEdit:
        """Apply the edit to `model`, the same base on any placement: whole or not at all.

        `apply` is "weight" (write it), "output" (add it to the layers' outputs, for quantized
        weights), or "scoped" (add it where a request's scope fires; needs `scoping`). An edit that
        has rows is solved together with those in the model; one without is added to them.

        The base is compared by the checksums of the edited weights, as they are now or as they were
        before this package first changed them. If a weight cannot be compared (quantized, another
        dtype, saved by one of several processes), the model's class, norms and biases are compared
        instead; the result and a warning say so. With `check=False` only names and shapes of
        targets must fit. If the model is split between processes, every process must call this.

        Raises EditError for another base or other shapes, and what `Ledger.change` raises.
        """
        return applied_edits({0: self}, model, apply, check=check, scoping=scoping)[0]

    def with_scopes(
        self, model: nn.Module, apply: str, check: bool, scoping: Scoping | None
    ) -> Mapping[str, LowRankUpdate]:
        if apply != SCOPED:
            return self.updates
        if scoping is None:
            raise EditError(
                f"{self.source} cannot be applied by scope, since no scope was given: pass "
                "`scoping` (that of a MendParallel with `apply: scoped`)"
            )
        if check and "scope" in self.about:
            check_below(model, self.about["scope"], self.source)
        return scoping.scoped(model, self.updates, self.requests)


def refuse_scoped(edit: SavedEdit, what: str) -> None:
    """Raise EditError for a scoped edit, since `what` cannot store where it applies."""
    if edit.about.get("hparams", {}).get("apply") == SCOPED:
        raise EditError(
            f"{edit.source} is applied by scope (apply: scoped), and {what} cannot hold where an "
            "edit applies: keep it in a journal, or edit with `apply: weight`"
        )


def applied_edits(
    edits: Mapping[int, SavedEdit],
    model: nn.Module,
    apply: str,
    *,
    check: bool,
    scoping: Scoping | None = None,
) -> dict[int, AppliedEdit]:
    """As `SavedEdit.apply`, for several edits of the same targets; edits that have rows are solved
    together and written once. Returns {number: applied edit}."""

    def take_back(applied: dict[int, AppliedEdit]) -> None:
        if Ranks.of(model).alone:
            for one in reversed(applied.values()):
                one.rollback()

    return made_whole(lambda: _applied(edits, model, apply, check, scoping), take_back)


def _applied(
    edits: Mapping[int, SavedEdit],
    model: nn.Module,
    apply: str,
    check: bool,
    scoping: Scoping | None,
) -> dict[int, AppliedEdit]:
    ledger, first = Ledger.of(model), next(iter(edits.values()))
    with ledger.lock:
        unchecked: dict[str, str] = {}
        with Ranks.of(model).agree("prepare the saved edit"):
            for edit in edits.values():
                targets = [
                    target_in(model, target, edit.source) for target in edit.targets.values()
                ]
            refuse_lost_files(model)
            if check:
                unchecked = check_base(model, targets, first.about["base"], first.source)
            updates = [edit.with_scopes(model, apply, check, scoping) for edit in edits.values()]
            placements = {target.name: place(model, target) for target in targets}
        for name, why in list(unchecked.items())[:1]:
            log.warning("%s: the base of %s was not compared: %s", first.source, name, why)
        entries: list[Entry | SequenceEntry] = []
        try:
            if first.solve_rows is not None and apply != SCOPED:
                entries += put_together(model, targets, placements, list(edits.values()), apply)
            else:
                if EditSequence.all_of(model):
                    log.warning("%s has no rows to solve: it is added to the others", first.source)
                for one in updates:
                    entries.append(ledger.change(targets, one, apply))
            return {
                number: AppliedEdit(edit, placements, unchecked, entry)
                for (number, edit), entry in zip(edits.items(), entries, strict=True)
            }
        except BaseException:
            for entry in reversed(entries):
                entry.undo(alone=True)
            raise


def saved_edit(
    targets: Mapping[str, Target],
    updates: Mapping[str, LowRankUpdate],
    requests: list[Request],
    about: Mapping[str, Any],
    entry: Entry | SequenceEntry | None = None,
) -> SavedEdit:
    """A `SavedEdit` of `updates`: rows on the CPU, without those that add nothing. If `entry` is
    of a sequence, also its rows to solve together with other edits."""
    solve_rows = entry.rows() if isinstance(entry, SequenceEntry) else None
    options = entry.options if isinstance(entry, SequenceEntry) and solve_rows else None
    cpu = torch.device("cpu")
    kept, positions = {}, {}
    for name, update in updates.items():
        here = update.detach().to(torch.device("cpu"))
        live = ((here.keys != 0).any(1) & (here.values != 0).any(1)).nonzero()[:, 0]
        kept[name] = LowRankUpdate(
            here.keys[live].float(), here.values[live].float(), here.request[live]
        )
        positions[name] = live
    return SavedEdit(
        {name: targets[name] for name in updates},
        kept,
        positions,
        requests,
        {
            **about,
            "rows": {name: len(update.keys) for name, update in updates.items()},
            "versions": package_versions(),
        },
        solve_rows=solve_rows and {name: rows.to(cpu) for name, rows in solve_rows.items()},
        options=options,
    )


def load_edit(path: str | Path) -> SavedEdit:
    """Read a saved edit. Reading runs no code.

    Raises EditError for a file that is missing, truncated, of a newer format, or no edit.
    """
    path = Path(path)
    if not is_there(path, EditError):
        raise EditError(f"there is no edit at {path.absolute()}")
    try:
        tensors, header = read_tensors(path)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise EditError(f"{path} is not a whole safetensors file: {error}") from error
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise EditError(f"{path} is no saved edit: it does not have the header of one")
    if header.get("format_version") not in (ADDED_VERSION, FORMAT_VERSION):
        raise EditError(
            f"{path} has format {header.get('format_version')!r}, and this version reads formats "
            f"{ADDED_VERSION} and {FORMAT_VERSION}: install the easyedit-mend-parallel that "
            "wrote it"
        )
    try:
        made = [instance_of(Target, one, "a target") for one in header["targets"]]
        targets = {target.name: target for target in made}
        requests = [
            Request(one["prompt"], one["target_new"], one["other"], one.get("target_space"))
            for one in of_form(header["requests"], list[SavedRequest], "its requests")
        ]
        about: dict[str, Any] = header["about"]
        of_form(about, About, "what it says about itself", more=True)
        unknown = sorted(targets.keys() - about["base"]["weights"])
        if unknown:
            raise ValueError(f"it does not say of which base {unknown[0]} is")
        read = {name: [tensors[f"{name}.{part}"] for part in PARTS] for name in targets}
        rows: dict[str, SolveRows] | None = None
        options: SystemOptions | None = None
        if header["format_version"] == FORMAT_VERSION:
            rows, options = rows_of_tensors(tensors, header["system"], targets)
    except (KeyError, TypeError, ValueError, AttributeError, MendParallelError) as error:
        raise EditError(f"{path} is damaged: {type(error).__name__} {error}") from error
    updates, positions = {}, {}
    for name, (keys, values, request, position) in read.items():
        target = targets[name]
        n = len(request)
        wanted = ((n, target.in_features), (n, target.out_features), (n,))
        are_rows = keys.is_floating_point() and values.is_floating_point()
        shapes = (tuple(keys.shape), tuple(values.shape), tuple(position.shape))
        if shapes != wanted or not are_rows or request.is_floating_point():
            raise EditError(
                f"{path} is damaged: the rows of {name} do not fit its widths or dtypes"
            )
        updates[name] = LowRankUpdate(keys.float(), values.float(), request.long())
        positions[name] = position.long()
    return SavedEdit(targets, updates, positions, requests, about, str(path), rows, options)


def _plain(request: Request) -> dict[str, Any]:
    """A request as JSON values; values that JSON does not know become text."""
    other = json.loads(json.dumps(dict(request.other), default=str))
    return {
        "prompt": request.prompt,
        "target_new": request.target_new,
        "other": other,
        "target_space": request.target_space,
    }


def package_versions() -> dict[str, str]:
    """{package: version} of Python and of what an edit depends on, for a saved edit's header."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
