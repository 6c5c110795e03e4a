"""A bit that changes in a file of this package is found when the file is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attack.file_kinds import (
    KINDS,
    archive_file,
    content_of_edit,
    edit_file,
    journal_file,
    pickle_file,
)
from attack.files import Damaged
from safetensors import safe_open
from safetensors.torch import save_file
from test_edits_journal import index_of
from toys import same_bits

from easyedit_mend_parallel import (
    ArchiveError,
    EditError,
    MendParallelError,
    TrainingError,
    export_delta,
    load_archive,
    load_edit,
)
from easyedit_mend_parallel.edits.journal_index import read_index
from easyedit_mend_parallel.files import CHECKSUM, HEADER, read_tensors, write_tensors

FLIPS = 300


@pytest.mark.parametrize("kind", [name for name, one in KINDS.items() if one.checked])
def test_a_flipped_bit_is_an_error_or_changes_nothing_that_is_read(
    kind: str, tmp_path: Path
) -> None:
    damaged = Damaged(KINDS[kind], tmp_path)

    damaged.flip(FLIPS)

    assert not damaged.wrong
    assert damaged.outcomes["refused"] > FLIPS // 2
    assert damaged.errors <= {ArchiveError, EditError, TrainingError}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_file_from_before_checksums_is_read_as_it_is(tmp_path: Path) -> None:
    path = edit_file(tmp_path)
    plain, rows = content_of_edit(path)
    tensors, header = read_tensors(path)
    assert CHECKSUM not in header

    save_file(tensors, path, metadata={HEADER: json.dumps(header)})
    again, found = content_of_edit(path)
    assert again == plain
    assert all(same_bits(found[name], row) for name, row in rows.items())

    journal = journal_file(tmp_path)
    entries = read_index(journal.parent)
    journal.write_text(json.dumps(index_of(journal.parent)))
    assert read_index(journal.parent) == entries


def test_a_file_that_lost_one_of_its_checksums_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"a": torch.ones(3)}, {"kind": "x"})
    metadata = metadata_of(path)
    header = json.loads(metadata[HEADER])
    del header[CHECKSUM]

    for kept in ({HEADER: metadata[HEADER]}, {**metadata, HEADER: json.dumps(header)}):
        save_file({"a": torch.ones(3)}, path, metadata=kept)
        with pytest.raises(ValueError, match="checksum"):
            read_tensors(path)


def test_the_header_of_an_archive_is_compared_where_its_matrices_stay_on_disk(
    tmp_path: Path,
) -> None:
    path = archive_file(tmp_path)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"1e-05", b"1e-06"))

    with pytest.raises(ArchiveError, match="header does not fit its checksum"):
        load_archive(path, shapes_only=True)


def test_a_pickle_that_was_written_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = pickle_file(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)

    assert load_archive(path).state


@pytest.mark.parametrize("lost", ["base", "model", "weights", "dtype"])
def test_an_edit_that_lost_a_name_of_its_base_is_refused_before_it_is_exported(
    lost: str, tmp_path: Path
) -> None:
    path = edit_file(tmp_path)
    tensors, header = read_tensors(path)
    text = json.dumps(header).replace(f'"{lost}"', f'"{lost[:-1]}X"')
    save_file(tensors, path, metadata={HEADER: text})  # from before checksums

    with pytest.raises(MendParallelError, match="damaged"):
        export_delta(load_edit(path), tmp_path / "delta")


def test_checksums_are_of_what_is_written_whatever_its_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        "number": torch.tensor(1.5),
        "none": torch.empty(0, 4),
        "half": torch.randn(3, 2).bfloat16(),
        "turned": torch.randn(3, 2).T,
        "flags": torch.tensor([True, False]),
        "counts": torch.arange(3),
    }
    write_tensors(tmp_path / "file", tensors, {})

    found, header = read_tensors(tmp_path / "file")
    assert header == {}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
