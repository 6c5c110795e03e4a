"""A file that is no file of ours, or was changed on purpose, is an error of this package: soon,
with no code run and nothing large in memory. Flipped bits are in test_checksums.py.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attack.file_kinds import KINDS, edit_file, journal_file
from attack.files import WAIT, Damaged, soon
from safetensors.torch import save_file

from easyedit_mend_parallel import (
    Journal,
    MendParallelError,
    MENDParallelHyperParams,
    load_archive,
    load_edit,
)
from easyedit_mend_parallel.evaluation.data import read_examples
from easyedit_mend_parallel.files import HEADER, read_tensors

MOST = 60
"""Places at which the content of a file is changed; `make attack` tries all of them."""


def refused(read: Callable[[Path], Any], path: Path) -> str:
    with soon(), pytest.raises(MendParallelError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("kind", [name for name, one in KINDS.items() if one.checked])
def test_a_file_that_was_cut_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    damaged = Damaged(KINDS[kind], tmp_path)

    damaged.cut(range(0, 100, 5))

    assert not damaged.wrong
    assert damaged.outcomes == {"refused": 20}


def test_hyperparameters_that_were_cut_are_refused(tmp_path: Path) -> None:
    damaged = Damaged(KINDS["hyperparameters"], tmp_path)

    damaged.cut([0, 50])

    assert damaged.outcomes == {"refused": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_other_content_is_refused_or_used_and_leaves_the_model(kind: str, tmp_path: Path) -> None:
    damaged = Damaged(KINDS[kind], tmp_path)

    damaged.change(most=MOST)
    damaged.end()

    assert not damaged.wrong
    assert damaged.outcomes["refused"] > MOST // 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["folder", "pipe", "device", "link to nothing", "link to itself"])
def test_what_is_no_file_is_refused_soon(what: str, kind: str, tmp_path: Path) -> None:
    make, read = KINDS[kind].make, KINDS[kind].read
    path = make(tmp_path)
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        to = {"device": "/dev/zero", "link to nothing": "nothing", "link to itself": path.name}
        path.symlink_to(to[what])
    if kind == "journal" and what == "link to nothing":
        path.unlink()
        path.parent.joinpath("other").write_text("")
    refused(read, path)


@pytest.mark.parametrize("closed", ["file", "folder"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_may_not_be_read_is_refused(kind: str, closed: str, tmp_path: Path) -> None:
    path = KINDS[kind].make(tmp_path)
    (path if closed == "file" else path.parent).chmod(0)
    child = os.fork()
    if child == 0:  # root may read everything, so somebody else tries
        try:
            if os.geteuid() == 0:
                for folder in tmp_path.parents:
                    folder.chmod(folder.stat().st_mode | 0o111)
                os.setuid(65534)
            KINDS[kind].read(path)
        except MendParallelError:
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    code = os.waitpid(child, 0)[1]
    (path if closed == "file" else path.parent).chmod(0o700)
    assert code == 0


@pytest.mark.parametrize("kind", ["edit", "archive"])
@pytest.mark.parametrize(
    "claim", ["a tensor of 10 GB", "a header of 10 GB", "deep", "a list", "no header", "NaN shape"]
)
def test_a_header_that_claims_something_else_is_refused(
    claim: str, kind: str, tmp_path: Path
) -> None:
    make, read = KINDS[kind].make, KINDS[kind].read
    path = make(tmp_path)
    if claim == "a header of 10 GB":
        path.write_bytes(struct.pack("<Q", 10 << 30) + b"{}")
    elif claim in ("a tensor of 10 GB", "NaN shape"):
        shape = [5 << 29] if claim == "a tensor of 10 GB" else [float("nan")]
        text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 10 << 30]}})
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(16))
    else:
        tensors, _header = read_tensors(path)
        text = {"deep": "[" * 200_000, "a list": "[1]", "no header": json.dumps({})}[claim]
        save_file({n: t.clone() for n, t in tensors.items()}, path, metadata={HEADER: text})
        if kind == "archive" and claim == "no header":
            return  # an archive needs none
    refused(read, path)


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "not a number"])
def test_an_edit_with_other_tensors_is_refused(change: str, tmp_path: Path) -> None:
    path = edit_file(tmp_path)
    tensors, header = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(one for one in tensors if one.endswith(".keys"))
    if change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif change == "dtype":
        tensors[name] = tensors[name].long()
    elif change == "missing":
        del tensors[name]
    else:
        tensors[name][0, 0] = float("nan")
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})
    from toys import assert_unchanged, toy_model, weights

    model = toy_model("llama")
    before = weights(model)
    refused(lambda one: load_edit(one).apply(model), path)
    assert_unchanged(model, before)


def test_a_journal_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    path = journal_file(tmp_path)
    content = json.loads(path.read_text())
    del content["checksum"]
    for file in ("../edit", "/etc/passwd", "a/b", 3, None):
        content["edits"][0]["file"] = file
        path.write_text(json.dumps(content))
        refused(lambda one: Journal(one.parent), path)
    path.write_text("[" * 200_000)
    refused(lambda one: Journal(one.parent), path)


class Runs:
    """A pickle of it would make a file when it is read."""

    def __init__(self, how: str, canary: Path) -> None:
        self.how, self.canary = how, canary

    def __reduce__(self) -> Any:
        command = f"touch {self.canary}"
        code = f"open({str(self.canary)!r}, 'w')"
        return {
            "os.system": (os.system, (command,)),
            "eval": (eval, (code,)),
            "exec": (exec, (code,)),
            "subprocess": (__import__("subprocess").getoutput, (command,)),
            "pathlib": (Path.touch, (self.canary,)),
        }[self.how]


@pytest.mark.parametrize("how", ["os.system", "eval", "exec", "subprocess", "pathlib"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "plain pickle"])
def test_a_pickle_that_would_run_code_runs_none(how: str, old: bool, tmp_path: Path) -> None:
    path, canary = tmp_path / "archive.pt", tmp_path / "canary"
    content = {"model": {"edit_lrs": torch.ones(1), "x": Runs(how, canary)}}
    if old:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    refused(load_archive, path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch canary']",
        "a: !unknown 3",
        "[" * 5000,
        "\n".join(
            ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
            + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
            + ["inner_params: *a11"]
        ),
        "? [1, 2]\n: 3\n? {a: b}\n: 4",
        "a: &a\n  b: *a",
        "\x00",
    ],
    ids=["code", "tag", "deep", "bomb", "keys", "circle", "NUL"],
)
def test_yaml_that_is_no_plain_mapping_is_refused_soon(text: str, tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text(f"alg_name: MEND_PARALLEL\n{text}\n")
    started = time.monotonic()
    refused(MENDParallelHyperParams.from_hparams, path)
    assert time.monotonic() - started < WAIT


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    for name, read in (
        ("h.yaml", MENDParallelHyperParams.from_hparams),
        ("f.jsonl", read_examples),
    ):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00a")
        refused(read, tmp_path / name)
