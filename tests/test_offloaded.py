"""Weights that accelerate offloads while the CPU computes are edited where they are kept: in RAM,
or before the files that they lie in, which are never written. What can go wrong with files is said
before anything changes.
"""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils import PrefixedDataset
from offloads import all_stored, digests, from_checkpoint, logits_of, stored
from oracle import assert_same_edit
from placements import device_map
from torch import Tensor
from toys import (
    BLOCKS,
    REQUEST,
    REQUESTS,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import (
    EditResult,
    HparamsError,
    MendParallel,
    MendParallelError,
    PlacementError,
    UpdateError,
    rollback_all,
)
from easyedit_mend_parallel.plugins.hookspecs import hookimpl
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights import scratch_files
from easyedit_mend_parallel.weights.overlay import Overlays
from easyedit_mend_parallel.weights.stores.overlay import OverlayStaged
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.update import LowRankUpdate

CPU = torch.device("cpu")
UP = "model.layers.5.mlp.up_proj.weight"
SIZE = 24 * 16 * 4
"""The bytes of each target of a toy model in fp32; there are nine."""


def places(model: Any, edited: str, others: str = "cpu") -> dict[str, Any]:
    """A device map with the last three blocks, which hold the targets, on `edited`."""
    return {
        module: edited if module in {f"model.layers.{n}" for n in range(3, BLOCKS)} else others
        for module in device_map(model, (0,) * BLOCKS, 0)
    }


def cpu_offloaded(model: Any, folder: Path) -> Any:
    return cpu_offload(model, execution_device=CPU)


def disk_offloaded(model: Any, folder: Path) -> Any:
    return disk_offload(model, str(folder / "offload"), execution_device=CPU)


def mapped_to_disk(model: Any, folder: Path) -> Any:
    return dispatch_model(
        model,
        places(model, "disk"),
        main_device="cpu",
        offload_dir=str(folder / "offload"),
        force_hooks=True,
    )


def one_file(model: Any, folder: Path) -> Any:
    return from_checkpoint(model, folder, places(model, "disk"))


def sharded_files(model: Any, folder: Path) -> Any:
    loaded = from_checkpoint(model, folder, places(model, "disk"), max_shard_size=10_000)
    assert len(list((folder / "checkpoint").glob("*.safetensors"))) > 2
    return loaded


def sharded_files_all_on_disk(model: Any, folder: Path) -> Any:
    disk = places(model, "disk", "disk") | {"model.norm": "cpu"}
    return from_checkpoint(model, folder, disk, max_shard_size=10_000)


WAYS = {
    "cpu_offload": (cpu_offloaded, "ram"),
    "disk_offload": (disk_offloaded, "dat"),
    "map": (mapped_to_disk, "dat"),
    "one-file": (one_file, "safetensors"),
    "sharded": (sharded_files, "safetensors"),
    "all-disk": (sharded_files_all_on_disk, "safetensors"),
}
ON_DISK = [way for way in WAYS if way != "cpu_offload"]


@functools.cache
def prepared(dtype: torch.dtype) -> tuple[Any, Any]:
    """A toy Llama and a network for it; whoever changes the model copies it first."""
    model = toy_model("llama", dtype=dtype)
    return model, toy_network(model, tokenizer_for(model))


class Toy:
    """A toy Llama that is offloaded, its targets' first bits, and an editor for it."""

    def __init__(self, way: str, folder: Path, **options: Any) -> None:
        dtype = options.pop("dtype", torch.float32)
        model, self.network = prepared(dtype)
        self.plain = copy.deepcopy(model)
        self.names = toy_targets(self.plain)
        self.tokenizer = tokenizer_for(self.plain)
        self.base = weights(self.plain, self.names)
        self.folder = folder
        self.model = WAYS[way][0](copy.deepcopy(self.plain), folder)
        self.kept = WAYS[way][1]
        self.editor = self.editor_of(self.model, **options)

    def editor_of(self, model: Any, **options: Any) -> MendParallel:
        hparams = toy_hparams(self.names, **options)
        return MendParallel(model, self.tokenizer, hparams, network=self.network)

    def stored(self) -> dict[str, Tensor]:
        return all_stored(self.model, self.names)

    def assert_is(self, bits: Mapping[str, Tensor]) -> None:
        now = self.stored()
        changed = [name for name, weight in bits.items() if not same_bits(now[name], weight)]
        assert not changed, f"changed: {changed}"

    def assert_unedited(self) -> None:
        self.assert_is(self.base)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which this process makes its private files, empty at first."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def files_in(folder: Path) -> list[Path]:
    gc.collect()
    return [path for path in folder.rglob("*") if path.is_file()]


# --- the edit


@pytest.mark.parametrize("limit", [None, 3 * SIZE, "0"], ids=["in-memory", "both", "private-files"])
@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_offloaded_weights_is_the_edit_of_the_plain_model(
    way: str, limit: Any, tmp_path: Path, private: Path
) -> None:
    toy = Toy(way, tmp_path / "model", overlay_limit=limit)
    files, unedited = digests(toy.folder), logits_of(toy.model)

    result = toy.editor.edit(REQUESTS, losses_after=True)
    toy.editor_of(toy.plain).edit(REQUESTS)

    assert {placement.kept for placement in result.placements.values()} == {toy.kept}
    assert {placement.device for placement in result.placements.values()} == {CPU}
    for name, weight in toy.stored().items():
        assert_same_edit(weight, toy.plain.get_parameter(name), toy.base[name])
    torch.testing.assert_close(logits_of(toy.model), logits_of(toy.plain))
    assert result.losses_after is not None
    assert result.losses_after != pytest.approx(result.losses, rel=0.1)
    expected = {None: 0, 3 * SIZE: 6, "0": 9}[limit] if toy.kept != "ram" else 0
    assert len(files_in(private)) == expected
    result.rollback()
    toy.assert_unedited()
    assert torch.equal(logits_of(toy.model), unedited)
    assert digests(toy.folder) == files
    assert not files_in(private)


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_edits_comes_out_again(way: str, tmp_path: Path, private: Path) -> None:
    toy = Toy(way, tmp_path / "model")
    toy.network = copy.deepcopy(toy.network)
    # Small edits: eight large ones in a row magnify the last place's rounding.
    with torch.no_grad():
        toy.network.edit_lrs.mul_(1e-2)
    toy.editor = toy.editor_of(toy.model, overlay_limit=4 * SIZE)
    files = digests(toy.folder)
    plain = toy.editor_of(toy.plain)
    kept: list[tuple[EditResult, EditResult]] = []
    for number in range(8):
        pair = toy.editor.edit(REQUESTS[number % 3]), plain.edit(REQUESTS[number % 3])
        if number in (2, 5):
            kept.append(pair)
        # The last edit; what was before it, before the one that `pair` held meanwhile, and before
        # each that is held. The base costs nothing.
        assert len(files_in(private)) <= 9 * (3 + len(kept))
    del pair

    for ours, theirs in kept:
        ours.rollback()
        theirs.rollback()
        for name, weight in toy.stored().items():
            assert_same_edit(weight, toy.plain.get_parameter(name), toy.base[name])
    kept.clear()
    rollback_all(toy.model)

    toy.assert_unedited()
    assert not files_in(private)
    assert digests(toy.folder) == files


def test_a_checkpoint_in_fp32_loaded_as_bf16_is_edited_as_bf16(tmp_path: Path) -> None:
    plain = toy_model("llama")
    plain.save_pretrained(tmp_path / "checkpoint")
    kwargs = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    on_disk = type(plain).from_pretrained(
        tmp_path / "checkpoint", device_map=places(plain, "disk"), **kwargs
    )
    plain = type(plain).from_pretrained(tmp_path / "checkpoint", **kwargs)
    names, tokenizer = toy_targets(plain), tokenizer_for(plain)
    network = toy_network(plain, tokenizer)
    base = weights(plain, names)

    result = MendParallel(
        on_disk, tokenizer, toy_hparams(names, overlay_limit=4 * SIZE), network=network
    ).edit(REQUEST)
    MendParallel(plain, tokenizer, toy_hparams(names), network=network).edit(REQUEST)

    for name in names:
        assert same_bits(stored(on_disk, name), plain.get_parameter(name))
    result.rollback()
    assert all(same_bits(stored(on_disk, name), base[name]) for name in names)


def test_an_edit_in_ram_keeps_the_storage_addresses(tmp_path: Path) -> None:
    """accelerate knows tied weights by them."""
    toy = Toy("cpu_offload", tmp_path)
    kept = toy.model.get_submodule(UP.rpartition(".")[0])._hf_hook.weights_map
    address = kept["weight"].data_ptr()
    result = toy.editor.edit(REQUEST)
    assert kept["weight"].data_ptr() == address
    result.rollback()
    assert kept["weight"].data_ptr() == address


@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_an_edited_model_keeps_the_edit(way: str, limit: Any, tmp_path: Path) -> None:
    toy = Toy(way, tmp_path, overlay_limit=limit)
    result = toy.editor.edit(REQUEST)
    edited = toy.stored()

    twin = copy.deepcopy(toy.model)
    result.rollback()
    del result
    gc.collect()

    toy.assert_unedited()
    assert all(same_bits(stored(twin, name), edited[name]) for name in toy.names)
    other = toy.editor_of(twin, overlay_limit=limit).edit(REQUESTS)
    toy.assert_unedited()
    other.rollback()
    assert all(same_bits(stored(twin, name), edited[name]) for name in toy.names)


@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
@pytest.mark.parametrize("way", ["map", "one-file"])
def test_a_saved_model_holds_the_edit(way: str, limit: Any, tmp_path: Path) -> None:
    toy = Toy(way, tmp_path, overlay_limit=limit)
    toy.editor.edit(REQUEST)
    toy.model.save_pretrained(tmp_path / "saved")
    again = type(toy.model).from_pretrained(tmp_path / "saved")
    edited = toy.stored()
    assert all(same_bits(again.get_parameter(name), edited[name]) for name in toy.names)


@pytest.mark.parametrize("way", WAYS)
def test_a_deleted_model_and_its_weights_are_freed_though_a_result_is_held(
    way: str, tmp_path: Path, private: Path
) -> None:
    toy = Toy(way, tmp_path / "model", overlay_limit=0)
    results = [toy.editor.edit(REQUEST), toy.editor.edit(REQUESTS)]
    freed = [weakref.ref(toy.model)]
    weight = toy.model.get_submodule("model.layers.0.mlp.up_proj")._hf_hook.weights_map
    if way == "cpu_offload":
        freed.append(weakref.ref(weight["weight"]))
    del toy, weight
    gc.collect()

    assert [ref() for ref in freed] == [None] * len(freed)
    for result in results:
        result.rollback()  # of nothing
    del results, result
    assert not files_in(private)


# --- wholly or not at all


@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
@pytest.mark.parametrize("after", [False, True], ids=["before-writing", "after-writing"])
@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize("what", ["commit", "undo", "undo-in-the-middle"])
@pytest.mark.parametrize("way", ["cpu_offload", "one-file"])
def test_what_breaks_half_way_changes_nothing(
    way: str,
    what: str,
    k: int,
    after: bool,
    limit: Any,
    tmp_path: Path,
    private: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = Toy(way, tmp_path / "model", overlay_limit=limit)
    first = toy.editor.edit(REQUESTS[0])
    second = toy.editor.edit(REQUESTS[1])
    edited = toy.stored()
    staged = ResidentStaged if way == "cpu_offload" else OverlayStaged
    method = what.split("-")[0]
    original, calls = getattr(staged, method), []

    def broken(self: Any) -> None:
        calls.append(1)
        if len(calls) != k + 1:
            original(self)
            return
        if after:
            original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staged, method, broken)
        with pytest.raises(KeyboardInterrupt):
            {
                "commit": lambda: toy.editor.edit(REQUESTS[2]),
                "undo": second.rollback,
                "undo-in-the-middle": first.rollback,
            }[what]()

    toy.assert_is(edited)
    first.rollback()
    second.rollback()
    toy.assert_unedited()
    assert not files_in(private)


@pytest.mark.parametrize("losses_after", [False, True], ids=["capture", "losses_after"])
@pytest.mark.parametrize("way", WAYS)
def test_a_forward_pass_that_breaks_leaves_no_weight_loaded(
    way: str, losses_after: bool, tmp_path: Path
) -> None:
    """As out of memory does, in a layer whose weight accelerate has just loaded."""
    toy = Toy(way, tmp_path / "model")
    layer = toy.model.get_submodule(UP.rpartition(".")[0])
    original, calls = layer._old_forward, []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (2 if losses_after else 1):
            raise torch.OutOfMemoryError("on purpose")
        return original(*args, **kwargs)

    layer._old_forward = breaks
    with pytest.raises(torch.OutOfMemoryError):
        toy.editor.edit(REQUESTS[0], losses_after=losses_after)
    toy.assert_unedited()
    result = toy.editor.edit(REQUESTS[0])
    result.rollback()
    toy.assert_unedited()


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_is_undone_after_a_forward_pass_of_somebody_else_broke(
    way: str, tmp_path: Path
) -> None:
    toy = Toy(way, tmp_path / "model")
    result = toy.editor.edit(REQUESTS[0])
    layer = toy.model.get_submodule(UP.rpartition(".")[0])
    original = layer._old_forward

    def breaks(*_args: Any, **_kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("on purpose")

    layer._old_forward = breaks
    with pytest.raises(torch.OutOfMemoryError):
        toy.model(torch.arange(4, 9)[None])
    layer._old_forward = original
    result.rollback()
    toy.assert_unedited()
    toy.editor.edit(REQUESTS[1])


@pytest.mark.parametrize("k", range(4))
def test_a_tied_weight_that_is_shown_under_one_name_only_is_put_right(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt between the two names of one weight, while it is shown or taken away."""
    model = toy_model("llama", tied=True)
    names, tokenizer = ["lm_head.weight"], tokenizer_for(model)
    network = toy_network(model, tokenizer, names)
    disk_offload(model, str(tmp_path), execution_device=CPU)
    both = ["lm_head.weight", "model.embed_tokens.weight"]
    base = all_stored(model, both)
    editor = MendParallel(model, tokenizer, toy_hparams(names), network=network)
    show, calls = Overlays.show, []

    def half(self: Overlays, loader: Any, source: Any) -> None:
        calls.append(1)
        if len(calls) == k + 1:
            first = dict(list(source.entries.items())[:1])
            show(self, loader, type(source)(source.tensor, first, source.folder))
            raise KeyboardInterrupt
        show(self, loader, source)

    with monkeypatch.context() as patch:
        patch.setattr(Overlays, "show", half)
        results = []
        while len(calls) <= k:
            before = all_stored(model, both)
            try:
                if results:
                    results.pop().rollback()
                else:
                    results.append(editor.edit(REQUEST))
            except KeyboardInterrupt:
                break
    now = all_stored(model, both)
    assert all(same_bits(now[name], before[name]) for name in both)
    rollback_all(model)
    now = all_stored(model, both)
    assert all(same_bits(now[name], base[name]) for name in both)


@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_float16_cannot_hold_is_refused(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(way, tmp_path, dtype=torch.float16)
    monkeypatch.setattr(LowRankUpdate, "largest_possible", lambda self: torch.tensor(7e4))
    with pytest.raises(UpdateError, match="could exceed what float16 holds"):
        toy.editor.edit(REQUEST)
    toy.assert_unedited()


# --- private files


def test_private_files_are_for_this_user_alone(tmp_path: Path, private: Path) -> None:
    toy = Toy("one-file", tmp_path / "model", overlay_limit=0)
    toy.editor.edit(REQUEST)
    (folder,) = private.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert len(files_in(folder)) == 9


@pytest.mark.parametrize("ends", ["by an exception", "after a fork"])
def test_private_files_are_gone_when_the_process_is(ends: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    script = f"""
import os, pathlib, sys
from test_offloaded import Toy, REQUEST
toy = Toy("one-file", pathlib.Path({str(tmp_path)!r}) / "model", overlay_limit=0)
result = toy.editor.edit(REQUEST)
made = lambda: len(list(pathlib.Path({str(tmp_path / "tmp")!r}).rglob("*.safetensors")))
assert made() == 9
if {ends!r} == "after a fork":
    if not os.fork():
        sys.exit()
    os.wait()
    assert made() == 9
if {ends!r} == "by an exception":
    raise RuntimeError("on purpose")
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode == 0) == (ends != "by an exception"), run.stderr[-2000:]
    assert "AssertionError" not in run.stderr
    assert not [path for path in (tmp_path / "tmp").rglob("*") if "torch" not in path.name]


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SIZE - 1))


def disk_full_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = scratch_files.write_tensors, []

    def full(path: Path, *args: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        write(path, *args, **options)

    monkeypatch.setattr(scratch_files, "write_tensors", full)


def cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")


def is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(Path(tempfile.gettempdir()) / "nowhere"))


@pytest.mark.parametrize("broken", [no_room, disk_full_meanwhile, cannot_be_written, is_gone])
def test_where_private_files_cannot_be_written_nothing_changes(
    broken: Any, tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy("one-file", tmp_path / "model", overlay_limit=0)

    with monkeypatch.context() as patch:
        broken(patch)
        with pytest.raises(UpdateError, match=r"proj\.weight.*TMPDIR.*overlay_limit"):
            toy.editor.edit(REQUEST)

    toy.assert_unedited()
    assert not files_in(private)
    toy.editor.edit(REQUEST)
    assert len(files_in(private)) == 9


def test_the_limit_counts_what_is_kept_for_rollbacks(tmp_path: Path, private: Path) -> None:
    toy = Toy("one-file", tmp_path / "model", overlay_limit=9 * SIZE)
    first = toy.editor.edit(REQUEST)
    assert not files_in(private)
    second = toy.editor.edit(REQUEST)  # the shadows of the first are kept for its rollback
    assert len(files_in(private)) == 9
    second.rollback()
    del second
    assert not files_in(private)
    first.rollback()
    toy.assert_unedited()


@pytest.mark.parametrize(
    ("written", "expected"),
    [(0, 0), ("0", 0), (5000, 5000), ("2GiB", 2**31), ("1.5 MB", 1_500_000), (None, None)],
)
def test_a_limit_is_a_size(written: Any, expected: int | None) -> None:
    assert toy_hparams([UP], overlay_limit=written).overlay_bytes == expected


@pytest.mark.parametrize(
    "written", ["2 gigs", "2Gb", "infGiB", "lots", -1, "-1GiB", True, "GiB", 1.5j]
)
def test_a_limit_that_is_no_size_is_refused(written: Any) -> None:
    with pytest.raises(HparamsError, match=r"overlay_limit is .*'2GiB'"):
        toy_hparams([UP], overlay_limit=written)


# --- files that are not what they were


@pytest.mark.parametrize("when", ["before-the-editor", "before-the-edit"])
@pytest.mark.parametrize("way", ON_DISK)
def test_files_that_vanished_are_named_before_anything_is_computed(
    way: str, when: str, tmp_path: Path
) -> None:
    toy = Toy(way, tmp_path / "model")
    before = toy.stored()
    calls: list[Any] = []
    toy.model.register_forward_pre_hook(lambda *_: calls.append(1))
    folder = tmp_path / "model" / ("offload" if toy.kept == "dat" else "checkpoint")

    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(PlacementError, match=f"{folder}.*is gone"):
        (toy.editor_of(toy.model) if when == "before-the-editor" else toy.editor).edit(REQUEST)

    assert not calls
    shutil.move(tmp_path / "elsewhere", folder)
    toy.assert_is(before)
    toy.editor.edit(REQUEST)


def test_one_file_that_vanished_is_named(tmp_path: Path) -> None:
    toy = Toy("map", tmp_path)
    (tmp_path / "offload" / f"{UP}.dat").unlink()
    with pytest.raises(PlacementError, match=rf"{UP} lies in .*{UP}\.dat.*No such file"):
        toy.editor.edit(REQUEST)


@pytest.mark.parametrize("way", ON_DISK)
def test_a_file_that_changed_under_the_model_is_refused(way: str, tmp_path: Path) -> None:
    toy = Toy(way, tmp_path)
    first = toy.editor.edit(REQUEST)
    edited = toy.stored()
    other = toy_model("llama", seed=9)
    if toy.kept == "dat":
        shutil.rmtree(tmp_path / "offload")
        WAYS[way][0](other, tmp_path)
    else:
        shard = {"max_shard_size": 10_000} if way != "one-file" else {}
        other.save_pretrained(tmp_path / "checkpoint", **shard)

    with pytest.raises(PlacementError, match="was changed since"):
        toy.editor.edit(REQUESTS)
    toy.assert_is(edited)
    with pytest.raises(MendParallelError, match="was changed since"):
        first.rollback()  # it would not bring the bits back
    toy.assert_is(edited)
    assert first.entry.applied


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    toy = Toy("one-file", tmp_path)
    config = copy.deepcopy(toy.plain.config)
    config.intermediate_size = 32
    type(toy.plain)(config).save_pretrained(tmp_path / "checkpoint")
    model = toy.model  # no editor has seen the file before

    vars(loader_of(model)).pop("_easyedit_mend_parallel_overlays")
    with pytest.raises(Exception, match=r"shape"):
        toy.editor_of(model).edit(REQUEST)
    from easyedit_mend_parallel.weights.stores import store_for
    from easyedit_mend_parallel.weights.target import find_target

    target = find_target(model, UP)
    update = LowRankUpdate(torch.ones(1, 16), torch.ones(1, 24), torch.zeros(1).long())
    with pytest.raises(UpdateError, match=rf"{UP} has shape \(24, 16\).*\(32, 16\) on disk"):
        store_for(model, target).stage(update)


@pytest.mark.parametrize("way", ON_DISK)
def test_files_that_are_read_only_are_no_hindrance(way: str, tmp_path: Path) -> None:
    toy = Toy(way, tmp_path)
    paths = list(tmp_path.rglob("*"))
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        result = toy.editor.edit(REQUEST)
        assert not same_bits(toy.stored()[UP], toy.base[UP])
        result.rollback()
        toy.assert_unedited()
    finally:
        for path in paths:
            path.chmod(0o700)


def test_a_folder_that_holds_more_than_the_model_reads_is_no_hindrance(tmp_path: Path) -> None:
    """accelerate uses a folder with an index again, whatever else is in it."""
    disk_offload(toy_model("llama"), str(tmp_path / "offload"), execution_device=CPU)
    toy = Toy("map", tmp_path)
    result = toy.editor.edit(REQUEST)
    result.rollback()
    toy.assert_unedited()


# --- witnesses that contradict each other, and kinds that nobody knows


def loader_of(model: Any) -> Any:
    """accelerate's map behind the hook of one target's layer."""
    kept = model.get_submodule(UP.rpartition(".")[0])._hf_hook.weights_map
    while isinstance(kept, PrefixedDataset):
        kept = kept.dataset
    return kept


@pytest.mark.parametrize(
    ("way", "says", "held"),
    [
        ("cpu_offload", "disk", "ram"),
        ("disk_offload", "cpu", "dat"),
        ("one-file", "cpu", "safetensors"),
    ],
)
def test_a_map_that_says_another_kind_than_the_hook_is_refused(
    way: str, says: str, held: str, tmp_path: Path
) -> None:
    toy = Toy(way, tmp_path)
    toy.model.hf_device_map = {"": says}
    with pytest.raises(PlacementError, match=rf"says '{says}'.*\(offloaded\), kept as {held}"):
        toy.editor.edit(REQUEST)


@pytest.mark.parametrize("way", WAYS)
def test_a_hook_that_was_removed_is_noticed(way: str, tmp_path: Path) -> None:
    toy = Toy(way, tmp_path)
    layer = toy.model.get_submodule(UP.rpartition(".")[0])
    del layer._hf_hook
    with pytest.raises(PlacementError, match=rf"{UP}: .*the weight itself is on meta"):
        toy.editor.edit(REQUEST)


def test_a_hook_whose_map_lacks_the_weight_is_noticed(tmp_path: Path) -> None:
    toy = Toy("cpu_offload", tmp_path)
    del loader_of(toy.model)[UP]
    with pytest.raises(PlacementError, match=rf"{UP}: .*\(offloaded\).*is on meta"):
        toy.editor.edit(REQUEST)


class Drawers(Mapping[str, Tensor]):
    """A third party's way to keep weights: none that this package knows."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class DrawerStore:
    """A store for weights in drawers: the new weight goes in, the old one is kept beside."""

    def __init__(self, place: WeightPlace) -> None:
        self.place = place
        self.drawers = drawers_of(place)

    def read(self) -> Tensor:
        return self.drawers[self.place.target.name]

    def put(self, bits: Tensor) -> None:
        self.drawers.tensors[self.place.target.name] = bits.to(self.read().dtype)

    def stage(self, update: LowRankUpdate) -> DrawerStaged:
        return DrawerStaged(self, update)


class DrawerStaged:
    independent = False

    def __init__(self, store: DrawerStore, update: LowRankUpdate) -> None:
        self.store = store
        self.before: Tensor | None = store.read()
        self.after = store.read().clone()
        update.write(self.after, store.place.target.transposed)

    def commit(self) -> None:
        self.store.put(self.after)

    def undo(self) -> None:
        assert self.before is not None
        self.store.put(self.before)

    def forget(self) -> None:
        self.before = None


def drawers_of(place: WeightPlace) -> Drawers:
    kept = place.target.layer(place.model)._hf_hook.weights_map
    assert isinstance(kept, PrefixedDataset)
    assert isinstance(kept.dataset, Drawers)
    return kept.dataset


class DrawerPlugin:
    @hookimpl
    def weight_store(self, place: WeightPlace) -> DrawerStore | None:
        return DrawerStore(place) if place.placement.kept == "unknown" else None


def in_drawers(model: Any) -> Any:
    return cpu_offload(model, execution_device=CPU, state_dict=Drawers(model.state_dict()))


def test_a_kind_that_nobody_knows_is_refused_and_the_plugin_hook_named(tmp_path: Path) -> None:
    toy = Toy("cpu_offload", tmp_path)
    with pytest.raises(PlacementError, match=r"layers\.3\.mlp.*no store.*weight_store"):
        toy.editor_of(in_drawers(toy.plain))


def test_a_third_partys_store_is_asked_for_its_kind(tmp_path: Path) -> None:
    toy = Toy("map", tmp_path)
    plain = copy.deepcopy(toy.plain)
    toy.editor_of(plain).edit(REQUEST)
    model = in_drawers(copy.deepcopy(toy.plain))
    plugin = DrawerPlugin()

    plugin_manager().register(plugin)
    try:
        results = [toy.editor_of(model).edit(request) for request in REQUESTS]
        assert {place.kept for place in results[0].placements.values()} == {"unknown"}
        for result in results[1:]:
            result.rollback()
        for name in toy.names:
            assert_same_edit(stored(model, name), plain.get_parameter(name), toy.base[name])
        torch.testing.assert_close(logits_of(model), logits_of(plain))
        rollback_all(model)
        assert all(same_bits(stored(model, name), toy.base[name]) for name in toy.names)

        # and an edit of another store comes out there, when the weights went there meanwhile
        result = toy.editor.edit(REQUEST)
        remove_hook_from_submodules(toy.model)
        del toy.model.hf_device_map
        in_drawers(toy.model)
        result.rollback()
        toy.assert_unedited()
    finally:
        plugin_manager().unregister(plugin)
    with pytest.raises(PlacementError, match="weight_store"):
        toy.editor_of(model)
