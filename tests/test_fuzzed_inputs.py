"""Every input that an hour of fuzzing kept is read, or refused by an exception of this package."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from attack.parsers import PARSERS, corpus_of

from easyedit_mend_parallel import MendParallelError


@pytest.mark.parametrize("kind", PARSERS)
def test_every_kept_input_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    inputs = corpus_of(kind)
    assert len(inputs) >= 5
    name, read = PARSERS[kind]
    path, refused = tmp_path / name, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in inputs:
            path.write_bytes(data)
            refused += 1
            with suppress(MendParallelError):
                read(path)
                refused -= 1
    assert refused  # most are damaged
