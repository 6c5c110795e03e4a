"""Which EasyEdit is there, and in what its releases differ. Decided by what it has, not by version.

Two are known: today's repository (a clone on PYTHONPATH), and the release 0.0.1.dev0 on PyPI.
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
    """Whether the EasyEdit in this folder is the early release, which knows only CUDA devices.

    The repository gained `util/device.py` when it learned other devices.
    """
    return not (package_folder / "util" / "device.py").is_file()


def early_release_is_installed() -> bool:
    """Whether importing EasyEdit would import the early release; imports nothing itself."""
    try:
        spec = importlib.util.find_spec(NAME)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and is_early(Path(spec.origin).parent)


def find_host(*, import_it: bool = False) -> Host | None:
    """The EasyEdit of this process, or None where nobody imported it; `import_it` imports it.

    Raises PluginError where it is to be imported and cannot be.
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
    """Whether `keep_original_weight` decides if an edit is undone (the early release).

    Today's editors decide it themselves, by what they call, and pass False always.
    """
    return is_early(folder_of(host))


def plugins_of_host() -> ModuleType | None:
    """The module with which an EasyEdit finds plugins by itself (see docs/upstream.md), or None.

    It adds the methods of installed packages to its registries, and knows by `METHODS`
    ({name: method}) how to treat their names in batches and in hyperparameter files.
    """
    module = sys.modules.get(f"{NAME}.util.plugins")
    return module if hasattr(module, "METHODS") else None


def folder_of(host: Host) -> Path:
    assert host.package.__file__ is not None
    return Path(host.package.__file__).parent
