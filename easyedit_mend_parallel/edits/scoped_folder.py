"""Saves the scoped edits of a model as a folder, and applies them to the same base again.

Knows bases and the ledger, and neither how edits were made nor how a scope decides.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from easyedit_mend_parallel.edits.base import check_base, describe_weights, target_in
from easyedit_mend_parallel.edits.scoped_files import SavedScopes, write_scopes
from easyedit_mend_parallel.edits.scoping import Scoping, about_below, check_below, note_below
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import new_folder
from easyedit_mend_parallel.hparams.values import size_in_bytes
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import refuse_lost_files
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.scoped_memory import refuse_other_scope
from easyedit_mend_parallel.weights.stores.scoped import SCOPED, scoped_memory
from easyedit_mend_parallel.weights.target import find_target

SCOPE_MEMORY = "4GiB"


@dataclass(frozen=True)
class LoadedEdit:
    """One edit of a loaded folder: (prompt, target) of its requests.

    References names and no rows. `rollback` undoes the edit in any order, to the bit.
    """

    requests: tuple[tuple[str, str], ...]
    entries: tuple[Entry, ...]

    def rollback(self) -> None:
        for entry in self.entries:
            entry.undo()


def save_scoped(model: nn.Module, folder: str | Path) -> Path:
    """Write the scoped edits of `model` to `folder`, which is new or empty: whole, or not at all.

    The folder has the requests and the scope's numbers (JSON), the scope's tensors and the keys,
    and the rows (safetensors), with checksums of the files and of the base: of the targets'
    weights and of all weights below the lowest target. It does not have the model.
    `load_scoped` applies them to the same base. Every process of a model that is split between
    them has to call this; the first one writes.

    Raises EditError for a model without scoped edits and for a folder that is not empty.
    """
    folder = Path(folder)
    ranks = Ranks.of(model)
    with Ledger.of(model).lock:
        with ranks.agree("describe the scoped edits"):
            memory = scoped_memory(model)
            if memory is None:
                raise EditError("the model has no scoped edits (apply: scoped) to save")
            targets = memory.targets
            base = describe_weights(model, targets, Ledger.of(model).before(), whole=True)
            below = about_below(model, memory.scope)
        with ranks.agree("write the scoped edits"):
            fresh = new_folder(folder) if ranks.is_first else nullcontext()
            with fresh as temporary:
                if temporary is not None:
                    widths = [asdict(find_target(model, name)) for name in targets]
                    write_scopes(temporary, memory, widths, {"base": base, "below": below})
    return folder


def load_scoped(
    folder: str | Path,
    model: nn.Module,
    tokenizer: Any,
    *,
    scope_memory: int | str = SCOPE_MEMORY,
    check: bool = True,
) -> list[LoadedEdit]:
    """Apply the scoped edits of `folder` to `model`, the same base on any placement: all or none.

    `tokenizer` is the one that they were made with. The result has one entry for each call of
    `edit` with which they were made, oldest first (a large one can have several). Requests that
    the model has already with the same prompts are replaced. `scope_memory` is how much rows and
    keys may take in memory; what is beyond lies in temporary files. Without `check`, the base is
    not compared. Every process of a model that is split between them has to call this.

    Raises EditError for a folder that is damaged or changed, of a newer format, or of another base
    or tokenizer, and UpdateError for a model whose scoped edits another scope decides.
    """
    ledger, ranks = Ledger.of(model), Ranks.of(model)
    limit = size_in_bytes("scope_memory", scope_memory)
    with ledger.lock:
        with ranks.agree("prepare the saved scoped edits"):
            saved = SavedScopes.read(Path(folder))
            targets = [target_in(model, target, saved.folder) for target in saved.targets]
            refuse_lost_files(model)
            Scoping.of(model, tokenizer, targets, saved.scope)
            memory = scoped_memory(model)
            if memory is not None:
                refuse_other_scope(memory, saved.scope)
            saved.refuse_other_tokenizer(tokenizer.decode)
            if check:
                check_below(model, saved.about["below"], str(folder))
                check_base(model, targets, saved.about["base"], str(folder))
            note_below(model, saved.scope)
        entries: list[tuple[int, Entry]] = []
        try:
            for edit, updates in saved.updates(tokenizer.decode, limit):
                mine = [target for target in targets if target.name in updates]
                entries.append((edit, ledger.change(mine, updates, SCOPED, keep_rows=False)))
        except BaseException:
            for _, entry in reversed(entries):
                entry.undo()
            raise
    said: dict[int, list[tuple[str, str]]] = {}
    for one in saved.requests:
        said.setdefault(one["edit"], []).append((one["prompt"], one["target"]))
    return [
        LoadedEdit(tuple(said[edit]), tuple(entry for _, entry in group))
        for edit, group in groupby(entries, key=lambda one: one[0])
    ]
