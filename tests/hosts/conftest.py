"""Puts an EasyEdit before the tests of this folder, in the process that tests/test_hosts.py starts.

Everywhere else they are left out: importing EasyEdit takes 12 s, and joining it cannot be undone.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOST = os.environ.get("EASYEDIT_MEND_PARALLEL_HOST")

if HOST not in ("installed", "clone"):
    collect_ignore_glob = ["test_*.py"]
else:
    if HOST == "clone":
        sys.path.insert(0, os.environ["EASYEDIT_HOME"])

    from fresh_process import Started, install_second_plugin

    from easyedit_mend_parallel import restore_mend

    easyeditor = importlib.import_module("easyeditor")  # after ours: the release needs that

    def pytest_report_header() -> str:
        return f"EasyEdit ({HOST}): {Path(str(easyeditor.__file__)).parent}"

    @pytest.fixture(autouse=True)
    def a_folder_for_what_easyedit_writes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        """EasyEdit writes logs/ where it runs, and says each line once for every editor made."""
        monkeypatch.chdir(tmp_path)
        logging.disable(logging.INFO)
        yield
        logging.disable(logging.NOTSET)
        restore_mend()

    @pytest.fixture(scope="session")
    def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Started]:
        """Processes in which something is done before EasyEdit is imported, all at once."""
        installed = tmp_path_factory.mktemp("installed")
        install_second_plugin(installed)
        paths = {"with_plugins_and_replacement": [installed], "with_a_name_that_is_taken": []}
        if not hasattr(easyeditor.BaseEditor, "normal_edit"):
            paths["without_this_package"] = []
        return {
            name: Started(name, tmp_path_factory.mktemp("run"), *path)
            for name, path in paths.items()
        }

    @pytest.fixture(scope="session")
    def found(processes: dict[str, Started]) -> dict[str, Any]:
        """What was found with more plugins, and `replace_mend`, before EasyEdit was imported."""
        return processes["with_plugins_and_replacement"].report()
