"""MEND knowledge editing for models that are spread over devices.

The import of this package registers `alg_name='MEND_PARALLEL'` in EasyEdit, at once or when
EasyEdit is imported. `MendParallel` edits a model without EasyEdit. The public names are imported
when they are first asked for: torch and transformers take seconds.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from easyedit_mend_parallel.easyedit.joining import join_when_imported
from easyedit_mend_parallel.errors import (
    ArchiveError,
    DataError,
    EditError,
    FileError,
    HparamsError,
    MendParallelError,
    PlacementError,
    PluginError,
    RequestError,
    TargetError,
    TrainingError,
    UpdateError,
)

if TYPE_CHECKING:
    from easyedit_mend_parallel.easyedit.registration import replace_mend, restore_mend
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
    "FileError",
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

_MODULES = {
    "easyedit.registration": ("replace_mend", "restore_mend"),
    "editor": ("EditResult", "MendParallel", "rollback_all"),
    "edits": (
        "AppliedEdit",
        "Journal",
        "LoadedEdit",
        "SavedEdit",
        "export_delta",
        "export_peft",
        "load_edit",
        "load_scoped",
        "save_edited",
        "save_scoped",
        "squash",
    ),
    "forward.requests": ("Request",),
    "hparams": ("MENDParallelHyperParams", "MENDParallelTrainingHparams"),
    "method.archive": ("Archive", "load_archive", "save_archive"),
}
"""Where the public names are that are imported when they are first asked for."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

try:
    __version__ = metadata.version("easyedit-mend-parallel")
except metadata.PackageNotFoundError:  # a clone on PYTHONPATH that was never installed
    __version__ = "unknown"

join_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
