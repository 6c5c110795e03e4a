"""A store that backs weights up on disk: with EASYEDIT_BACKUPS=disk an edit needs no memory for its
backup. The files are in TMPDIR, and are removed when their edit can no longer be undone.
"""

from __future__ import annotations

import os

from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.files import read_tensors
from easyedit_mend_parallel.plugins.hookspecs import hookimpl
from easyedit_mend_parallel.weights.placement import RESIDENT
from easyedit_mend_parallel.weights.scratch_files import WEIGHT, ScratchFile, write_scratch
from easyedit_mend_parallel.weights.stored import stored_part
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace, let_go, refuse_overflow
from easyedit_mend_parallel.weights.stores.resident import ResidentStore
from easyedit_mend_parallel.weights.update import LowRankUpdate


@hookimpl
def weight_store(place: WeightPlace) -> DiskBackupStore | None:
    """Offer the store for whole weights on their layer's device, if the user asked for it."""
    if os.environ.get("EASYEDIT_BACKUPS") != "disk" or place.apply != "weight":
        return None
    if place.placement.kept != RESIDENT or stored_part(place.model, place.target) is not None:
        return None
    return DiskBackupStore(place)


class BackedUpOnDisk:
    """One update of the weight, with a file that has the weight's bits from before it."""

    independent = False  # its undo restores the whole weight

    def __init__(self, store: ResidentStore, update: LowRankUpdate) -> None:
        self._store, self._update = store, update
        try:
            self._file: ScratchFile | None = write_scratch(None, store.weight, store.target.name)
        except UpdateError as error:
            raise UpdateError(f"no backup on disk, unset EASYEDIT_BACKUPS: {error}") from error

    @property
    def before(self) -> Tensor | None:
        return read_tensors(self._file.path)[0][WEIGHT] if self._file is not None else None

    def commit(self) -> None:
        if self._store.is_here:
            self._update.write(self._store.weight, self._store.target.transposed)
        else:  # the model was dispatched again
            self._store.current_store.write(self._update)

    def undo(self) -> None:
        before = self.before
        if before is None:
            raise let_go(self._store.target)
        if self._store.is_here:
            self._store.put(before)
        else:
            self._store.current_store.put(before)

    def forget(self) -> None:
        self._file = None


class DiskBackupStore(ResidentStore):
    """The weight of a layer, changed in place, with its backup in a file."""

    def stage(self, update: LowRankUpdate) -> BackedUpOnDisk:  # type: ignore[override]
        refuse_overflow(self.target, self.weight, update)
        return BackedUpOnDisk(self, update)
