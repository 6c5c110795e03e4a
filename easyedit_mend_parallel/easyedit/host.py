"""Finds the imported EasyEdit and the differences of its versions, by its features.

Two versions are known: the repository (a clone on PYTHONPATH), and the release 0.0.1.dev0 on PyPI.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from easyedit_mend_parallel.errors import PluginError
from easyedit_mend_parallel.plugins.hookspecs import Host

NAME = "easyeditor"


def is_early(package_folder: Path) -> bool:
    """Whether the EasyEdit in this folder is the early release, which supports only CUDA devices.

    The repository has `util/device.py` since it supports other devices.
    """
    return not (package_folder / "util" / "device.py").is_file()


def early_release_is_installed() -> bool:
    """Whether an import of EasyEdit would import the early release. Imports nothing."""
    try:
        spec = importlib.util.find_spec(NAME)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and is_early(Path(spec.origin).parent)


def find_host(*, import_it: bool = False) -> Host | None:
    """The EasyEdit of this process; None if it was not imported. `import_it` imports it.

    Raises PluginError if the import fails.
    """
    if import_it:
        try:
            importlib.import_module(NAME)
        except ImportError as error:
            raise PluginError(
                f"EasyEdit cannot be imported here ({error}): put a clone of it on PYTHONPATH, or "
                "install its release"
            ) from error
    package = sys.modules.get(NAME)
    return None if package is None else Host(package)


def keeps_edits_unless_asked(host: Host) -> bool:
    """Whether `keep_original_weight` decides if an edit is undone (in the early release).

    The repository's editors decide this by what they call, and always pass False.
    """
    return is_early(folder_of(host))


def plugins_of_host() -> ModuleType | None:
    """The module with which an EasyEdit finds plugins itself (see docs/upstream.md), or None.

    It adds the methods of installed packages to its registries. With `METHODS` ({name: method}) it
    decides how to treat their names in batches and in hyperparameter files.
    """
    module = sys.modules.get(f"{NAME}.util.plugins")
    return module if hasattr(module, "METHODS") else None


def folder_of(host: Host) -> Path:
    assert host.package.__file__ is not None
    return Path(host.package.__file__).parent
