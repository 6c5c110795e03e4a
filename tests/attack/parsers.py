"""The parsers that are fuzzed, and the inputs of an hour that reached new lines (`corpus.zip`)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easyedit_mend_parallel import MENDParallelHyperParams
from easyedit_mend_parallel.edits.journal_index import INDEX, read_index
from easyedit_mend_parallel.edits.saved import load_edit
from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.method.archive import load_archive

CORPUS = Path(__file__).parent / "corpus.zip"
"""Entries are named KIND/NAME."""
PARSERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "hyperparameters": ("h.yaml", MENDParallelHyperParams.from_hparams),
    "facts": ("f.jsonl", read_examples),
    "journal": (INDEX, lambda path: read_index(path.parent)),
    "edit": ("edit.safetensors", load_edit),
    "archive": ("a.safetensors", load_archive),
    "EasyEdit's archive": ("a.pt", load_archive),
}
"""{kind: (the name of its file, what reads it)}."""


def corpus_of(kind: str) -> list[bytes]:
    """The inputs that are kept for a kind."""
    with zipfile.ZipFile(CORPUS) as kept:
        return [kept.read(name) for name in kept.namelist() if name.startswith(f"{kind}/")]
