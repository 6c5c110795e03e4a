"""A plugin that cannot be imported is left out and named; it keeps nobody else from working."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from easyedit_mend_parallel.plugins.manager import plugin_manager


@pytest.fixture
def fresh_manager() -> Iterator[None]:
    plugin_manager.cache_clear()
    yield
    plugin_manager.cache_clear()


@pytest.mark.usefixtures("fresh_manager")
def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken_plugin.py").write_text("raise ImportError('no such luck')\n")
    about = tmp_path / "broken_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[easyedit]\nbroken = broken_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)

    with caplog.at_level(logging.WARNING):
        names = [name for name, _ in plugin_manager().list_name_plugin()]

    assert "mend_parallel" in names
    assert "broken" not in names
    assert "broken (broken_plugin) cannot be imported" in caplog.text
    assert "no such luck" in caplog.text
