"""A bit that changes in a file of this package is found when the file is read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import edited, editor_of
from safetensors import safe_open
from safetensors.torch import save_file
from test_edits_journal import index_of
from toys import same_bits, tokenizer_for, toy_model, toy_network

from easyedit_mend_parallel import (
    ArchiveError,
    EditError,
    Journal,
    MendParallelError,
    export_delta,
    load_archive,
    load_edit,
    save_archive,
)
from easyedit_mend_parallel.edits.journal_index import read_index
from easyedit_mend_parallel.files import CHECKSUM, HEADER, read_tensors, write_tensors

FLIPS = 150


def edit_file(folder: Path) -> Path:
    _model, result = edited()
    return result.save(folder / "edit.safetensors")


def solved_edit_file(folder: Path) -> Path:
    editor = editor_of(toy_model("llama"), aggregate="least_squares")
    return editor.edit({"prompt": "who wrote Hamlet", "target_new": "a stone"}).save(folder / "e")


def archive_file(folder: Path, name: str = "a.safetensors") -> Path:
    model = toy_model("gpt2")
    return save_archive(folder / name, toy_network(model, tokenizer_for(model)), note="é 1e-05")


def pickle_file(folder: Path) -> Path:
    return archive_file(folder, "a.pt")


def journal_file(folder: Path) -> Path:
    _model, result = edited()
    Journal(folder / "journal").add(result)
    return folder / "journal" / "journal.json"


def content_of_edit(path: Path) -> Any:
    edit = load_edit(path)
    rows = {f"{name} {part}": t for name, u in edit.updates.items() for part, t in vars(u).items()}
    rows |= {f"{name} at": at for name, at in edit.positions.items()}
    for name, solve in (edit.solve_rows or {}).items():
        rows |= {f"{name} solve {part}": t for part, t in vars(solve).items()}
    plain = (edit.about, [asdict(one) for one in edit.requests], edit.targets, edit.options)
    return plain, {name: row for name, row in rows.items() if isinstance(row, torch.Tensor)}


def content_of_archive(path: Path) -> Any:
    archive = load_archive(path)
    return archive.header, archive.state


def content_of_journal(path: Path) -> Any:
    return read_index(path.parent), {}


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "edit": (edit_file, content_of_edit),
    "solved edit": (solved_edit_file, content_of_edit),
    "archive": (archive_file, content_of_archive),
    "EasyEdit's archive": (pickle_file, content_of_archive),
    "journal": (journal_file, content_of_journal),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_is_an_error_or_changes_nothing_that_is_read(
    kind: str, tmp_path: Path
) -> None:
    make, read = FILES[kind]
    path = make(tmp_path)
    plain, tensors = read(path)
    whole = path.read_bytes()
    generator = random.Random(0)
    head = 8 + int.from_bytes(whole[:8], "little") if kind != "journal" else len(whole)
    places = [generator.randrange(len(whole)) for _ in range(FLIPS)]
    places += [generator.randrange(min(head, len(whole))) for _ in range(FLIPS)]
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            now, found = read(path)
        except (ArchiveError, EditError):
            refused += 1
            continue
        assert now == plain, f"byte {place}"
        assert found.keys() == tensors.keys(), f"byte {place}"
        for name, tensor in tensors.items():
            assert same_bits(found[name], tensor), f"byte {place}: {name}"
    assert refused > len(places) // 2


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
