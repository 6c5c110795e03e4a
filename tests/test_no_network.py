"""The package opens no connection: edits, files and undos work where sockets are forbidden."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from edited import FACTS, editor_of
from toys import assert_unchanged, toy_model, weights

from easyedit_mend_parallel import Journal, export_peft, load_edit, rollback_all, save_edited


def test_an_edits_life_needs_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)
    model = toy_model("llama")
    base = weights(model)
    journal = Journal(tmp_path / "journal").apply_to(model)
    editor = editor_of(model)

    results = [editor.edit(fact) for fact in FACTS]
    journal.add(results[0])
    path = results[1].save(tmp_path / "edit")
    export_peft(load_edit(path), tmp_path / "adapter")
    save_edited(model, tmp_path / "model")
    rollback_all(model)

    assert_unchanged(model, base)
    load_edit(path).apply(model)
