"""Feeds inputs that a coverage-guided fuzzer (atheris, Linux) makes to the parsers of this package.

    PYTHONPATH=.:tests python -m attack.fuzz KIND CORPUS [-max_total_time=60]

KIND is one of `PARSERS`; CORPUS a folder in which inputs that reach new lines are kept, at first
those of `corpus.zip`; the rest are options of libFuzzer. An input has to be read or to raise an
exception of this package. Knows nothing of models.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["easyedit_mend_parallel", "yaml"]):
    from attack.parsers import PARSERS, corpus_of
    from easyedit_mend_parallel import MendParallelError


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
    """A whole file to begin with, and the inputs that an earlier run found."""
    from attack.file_kinds import KINDS

    with tempfile.TemporaryDirectory() as folder:
        whole = KINDS[kind].make(Path(folder)).read_bytes()
    (corpus / "whole").write_bytes(whole)
    for number, data in enumerate(corpus_of(kind)):
        (corpus / f"found-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
