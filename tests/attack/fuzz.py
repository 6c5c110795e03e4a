"""Feeds inputs that a coverage-guided fuzzer (atheris, Linux) makes to the parsers of this package.

    PYTHONPATH=.:tests python -m attack.fuzz KIND CORPUS [-max_total_time=60]

KIND is one of `PARSERS`; CORPUS a folder in which inputs that reach new lines are kept; the rest
are options of libFuzzer. An input has to be read or to raise an exception of this package. Knows
nothing of models.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris
import torch

with atheris.instrument_imports(include=["easyedit_mend_parallel", "yaml"]):
    from easyedit_mend_parallel import MendParallelError, MENDParallelHyperParams
    from easyedit_mend_parallel.edits.journal_index import INDEX, read_index
    from easyedit_mend_parallel.edits.saved import load_edit
    from easyedit_mend_parallel.evaluation.data import read_examples
    from easyedit_mend_parallel.method.archive import load_archive

PARSERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "hyperparameters": ("h.yaml", MENDParallelHyperParams.from_hparams),
    "facts": ("f.jsonl", read_examples),
    "journal": (INDEX, lambda path: read_index(path.parent)),
    "edit": ("edit.safetensors", load_edit),
    "archive": ("a.safetensors", load_archive),
    "EasyEdit's archive": ("a.pt", load_archive),
}
"""{kind: (the name of its file, what reads it)}."""


def main() -> None:
    kind = sys.argv.pop(1)
    name, read = PARSERS[kind]
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        seed(kind, corpus)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        def once(data: bytes) -> None:
            path.write_bytes(data)
            with suppress(MendParallelError):
                read(path)

        atheris.Setup(sys.argv, once)
        atheris.Fuzz()


def seed(kind: str, corpus: Path) -> None:
    """A whole file to begin with."""
    from attack.file_kinds import KINDS

    with tempfile.TemporaryDirectory() as folder:
        whole = KINDS[kind].make(Path(folder)).read_bytes()
    (corpus / "whole").write_bytes(whole)


if __name__ == "__main__":
    main()
