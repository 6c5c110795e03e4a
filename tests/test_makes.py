"""The facts of three makes are those whose checksums were fixed before a training run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

MAKES = Path(__file__).parents[1] / "scripts" / "makes"


def checked(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "makes.py"), str(out), "--check"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_data_makes_the_files_that_the_split_names(tmp_path: Path) -> None:
    ran = checked(MAKES, tmp_path / "out")

    assert ran.returncode == 0, ran.stderr


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MAKES, tmp_path / "makes"))
    records = folder / "data" / "records.jsonl"
    records.write_text(records.read_text("utf-8").replace('"+93"', '"+94"'), "utf-8")

    ran = checked(folder, tmp_path / "out")

    assert ran.returncode == 1
    assert "not the files that split.json names" in ran.stderr
