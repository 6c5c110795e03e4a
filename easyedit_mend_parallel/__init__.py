"""MEND knowledge editing for models that are spread over devices.

The import of this package registers `alg_name='MEND_PARALLEL'` in EasyEdit, at once or when
EasyEdit is imported. `MendParallel` edits a model without EasyEdit.
"""

from importlib import metadata

from easyedit_mend_parallel.easyedit.registration import (
    join_when_imported,
    replace_mend,
    restore_mend,
)
from easyedit_mend_parallel.editor import EditResult, MendParallel, rollback_all
from easyedit_mend_parallel.edits import (
    AppliedEdit,
    Journal,
    LoadedEdit,
    SavedEdit,
    export_delta,
    export_peft,
    load_edit,
    load_scoped,
    save_edited,
    save_scoped,
    squash,
)
from easyedit_mend_parallel.errors import (
    ArchiveError,
    DataError,
    EditError,
    HparamsError,
    MendParallelError,
    PlacementError,
    PluginError,
    RequestError,
    TargetError,
    TrainingError,
    UpdateError,
)
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.hparams import MENDParallelHyperParams, MENDParallelTrainingHparams
from easyedit_mend_parallel.method.archive import Archive, load_archive, save_archive

__all__ = [
    "AppliedEdit",
    "Archive",
    "ArchiveError",
    "DataError",
    "EditError",
    "EditResult",
    "HparamsError",
    "Journal",
    "LoadedEdit",
    "MENDParallelHyperParams",
    "MENDParallelTrainingHparams",
    "MendParallel",
    "MendParallelError",
    "PlacementError",
    "PluginError",
    "Request",
    "RequestError",
    "SavedEdit",
    "TargetError",
    "TrainingError",
    "UpdateError",
    "export_delta",
    "export_peft",
    "load_archive",
    "load_edit",
    "load_scoped",
    "replace_mend",
    "restore_mend",
    "rollback_all",
    "save_archive",
    "save_edited",
    "save_scoped",
    "squash",
]

try:
    __version__ = metadata.version("easyedit-mend-parallel")
except metadata.PackageNotFoundError:  # a clone on PYTHONPATH that was never installed
    __version__ = "unknown"

join_when_imported()
