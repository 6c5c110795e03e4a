"""Edits a 7B-shaped model on disk, in a process that may use 3 GiB in all.

    python -m easyedit_mend_parallel.demo.large [--shape 7b|small] [--folder DIR] [--times N]

Needs 15 GB of disk for the 7B shape (random weights, made once). Prints time and memory of each
step: through EasyEdit's BaseEditor, and through this package alone with the update written into
the weights or added to the layers' outputs.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_hparams
from easyedit_mend_parallel.demo.memory import Peak, anonymous_mib, capped
from easyedit_mend_parallel.demo.random_model import ARCHIVE, RANKS, SHAPES, make, targets_of
from easyedit_mend_parallel.files import cache_folder
from easyedit_mend_parallel.weights.stores import store_for
from easyedit_mend_parallel.weights.target import find_targets

GIB = 1 << 30
WAYS = {"base-editor": 3.0, "weight": 2.5, "output": 2.5}
"""{the way of editing: limit of its process in GiB, with the page cache}"""
REQUESTS = [
    {"prompt": "The capital of France is", "target_new": "Berlin"},
    {"prompt": "The mother tongue of Danielle Darrieux is", "target_new": "English"},
    {"prompt": "The Eiffel Tower is in", "target_new": "Rome"},
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m easyedit_mend_parallel.demo.large")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--folder", type=Path, default=cache_folder(), help="folder of the model")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help="times in one process")
    options = parser.parse_args()
    if options.way:
        return again(options.shape, make(options.shape, options.folder), options.way, options.times)
    console = Console(width=None if sys.stdout.isatty() else 100)
    directory = make(options.shape, options.folder)
    size = sum(file.stat().st_size for file in directory.glob("model-*.safetensors"))
    console.print(f"{directory.name}: {size / GIB:.1f} GiB of weights, rank {RANKS[options.shape]}")
    failed = 0
    for way, gib in WAYS.items():
        with capped(int(gib * GIB)) as cap:
            console.rule(f"{way}: at most {gib} GiB in all, held to it by {cap.says}")
            command = [*cap.prefix, sys.executable, "-W", "ignore", "-m", __spec__.name]
            command += ["--shape", options.shape, "--folder", str(options.folder), "--way", way]
            command += ["--times", str(options.times)]
            failed |= subprocess.run(command, preexec_fn=cap.join, check=False).returncode
    return failed


def again(shape: str, directory: Path, way: str, times: int) -> int:
    """`edit` as often, one after the other, with what is left in memory after each."""
    failed = 0
    for number in range(1, times + 1):
        failed |= edit(shape, directory, way)
        gc.collect()
        if times > 1:
            print(f"  after {number} of {times}: {anonymous_mib():.0f} MiB anonymous", flush=True)
    return failed


def edit(shape: str, directory: Path, way: str) -> int:
    """One way in this process: load, forward, edit, restore. Returns 0 if all bits are restored."""
    peak, loaded = Peak(), 0.0

    def step(says: str, do: Callable[[], Any]) -> Any:
        peak.reset()
        started = time.perf_counter()
        found = do()
        seconds, over = time.perf_counter() - started, peak.mib - loaded
        print(f"  {says:32} {seconds:6.2f} s   at most {over:6.0f} MiB anonymous", flush=True)
        return found

    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    hparams.model_name = hparams.tokenizer_name = str(directory)
    names = targets_of(shape)
    hparams.inner_params, hparams.rank = names, RANKS[shape]
    hparams.archive, hparams.device = str(directory / ARCHIVE), "cpu"
    hparams.on_worse = "ignore"  # the network is not trained
    hparams.apply = "output" if way == "output" else "weight"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # EasyEdit writes its logs where it is run
        places: dict[str, Any] = {
            f"model.layers.{i}": "disk" for i in range(int(SHAPES[shape]["num_hidden_layers"]))
        }
        ends = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
        hparams.model_kwargs = {
            "device_map": places | dict.fromkeys(ends, "cpu"),
            "offload_folder": folder,
            "dtype": torch.bfloat16,
        }
        editor = step("load", lambda: _editor(way, hparams))
        model = editor.model
        loaded = anonymous_mib()
        print(f"  {'(the loaded process':>32} {loaded:27.0f} MiB, not counted below)")
        ids = torch.tensor([[84, 104, 101, 32, 99, 97, 112, 105, 116, 97, 108]])
        with torch.no_grad():
            step("forward pass", lambda: model(input_ids=ids, use_cache=False))
        before = checksums(model, names)
        if way == "base-editor":
            undo = step("edit and evaluate, one request", lambda: _edit_with_easyedit(editor))
        else:
            many = f"edit and restore, {len(REQUESTS)} requests"
            step(many, lambda: editor.edit(REQUESTS).rollback())
            undo = step("edit, one request", lambda: editor.edit(REQUESTS[0])).rollback
        changed = checksums(model, names) != before or way == "output"
        step("restore", undo)
        restored = checksums(model, names) == before
    print(f"  restored to the bit: {'yes' if restored else 'NO'}")
    return 0 if restored and changed else 1


def _editor(way: str, hparams: MENDParallelHyperParams) -> Any:
    """EasyEdit's editor, or this package's. Both have the loaded model as `model`."""
    if way == "base-editor":
        import easyeditor

        logging.disable(logging.WARNING)  # EasyEdit logs every metric
        return easyeditor.BaseEditor.from_hparams(hparams)
    from transformers import AutoModelForCausalLM, GPT2Tokenizer

    kwargs = hparams.model_kwargs or {}
    model = AutoModelForCausalLM.from_pretrained(hparams.model_name, **kwargs).eval()
    return MendParallel(model, GPT2Tokenizer.from_pretrained(hparams.model_name), hparams)


def _edit_with_easyedit(editor: Any) -> Callable[[], None]:
    _, _, weights_copy = editor.edit(
        prompts=[REQUESTS[0]["prompt"]],
        target_new=[REQUESTS[0]["target_new"]],
        ground_truth=["Paris"],
        sequential_edit=True,
        verbose=False,
    )
    undo: Callable[[], None] = weights_copy
    return undo


def checksums(model: Any, names: list[str]) -> list[int]:
    """A checksum of each weight's bits as the next forward pass will use them."""
    found = []
    for target in find_targets(model, names):
        bits = store_for(model, target).read()  # type: ignore[attr-defined]
        found.append(zlib.crc32(bits.contiguous().view(torch.int16).numpy()))
    return found


if __name__ == "__main__":
    sys.exit(main())
