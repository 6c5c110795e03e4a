"""Edits of toy models on a real device: each claim is a function, and fails with an exception.

    PYTHONPATH=tests python -m gpu.checks NAME DEVICE

Prints what it counted, as JSON. A device is `cuda:0`, `xpu:0`, ... or `cpu`.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from offloads import all_stored, offloaded
from oracle import oracle_edit
from placements import PLACEMENTS, device_map
from quantized import KINDS, quantized_model, wide_model
from scoped_toys import THREE
from scoped_toys import editor_of as scoped_editor
from toys import (
    REQUEST,
    REQUESTS,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, load_edit, rollback_all
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests

FAMILIES = ("llama", "gpt2", "mistral", "gptj")
OFFLOADS = ("all-ram", "all-dat", "targets-ram", "targets-dat", "targets-safetensors")
TOLERANCE = 1e-4
"""How far an edit in fp32 may be from the method's in float64, in units of the largest change."""

Figures = dict[str, Any]


def one_device(device: str) -> Figures:
    """On one device: one edit, a batch and a sequence of three, with each way to apply them."""
    edits = 0
    for family in FAMILIES:
        for apply in ("weight", "output"):
            model = toy_model(family)
            editor = editor_of(model.to(device), apply)
            before, plain = weights(model), logits(model)
            for asked in ([REQUEST], REQUESTS):
                result = editor.edit(asked)
                assert not torch.equal(logits(model), plain), f"{family}: the edit is not felt"
                result.rollback()
                assert_unchanged(model, before)
                edits += 1
            results = [editor.edit(request) for request in REQUESTS]
            for number in (1, 0, 2):
                results[number].rollback()
            assert_unchanged(model, before)
            assert torch.equal(logits(model), plain)
            edits += len(results)
    return {"edits": edits}


def same_as_the_method(device: str) -> Figures:
    """On one device, an edit is that of MEND in float64, and goes back to the bit."""
    for family in FAMILIES:
        equals_oracle(toy_model(family), lambda model: model.to(device))
    return {"edits": len(FAMILIES)}


def offloaded_weights(device: str) -> Figures:
    """With weights in RAM, in accelerate's files, or in a checkpoint, the same."""
    edits = 0
    for family in FAMILIES:
        for kind in OFFLOADS:
            with tempfile.TemporaryDirectory() as folder:

                def place(model: Any, kind: str = kind, folder: str = folder) -> Any:
                    return offloaded(model, kind, Path(folder), where(device))

                equals_oracle(toy_model(family), place)
            edits += 1
    return {"edits": edits}


def several_devices(device: str) -> Figures:
    """On the 36 placements over two or three devices, as far as there are so many."""
    kind, count = device.partition(":")[0], accelerators(device)
    edits = 0
    for family, blocks, head in PLACEMENTS.values():
        if max(*blocks, head) < count:

            def place(model: Any, blocks: Any = blocks, head: int = head) -> Any:
                places = device_map(model, blocks, head, name=f"{kind}:{{}}".format)
                return dispatch_model(model, places, main_device=f"{kind}:0")

            equals_oracle(toy_model(family), place)
            edits += 1
    return {"edits": edits, "devices": count}


def half_precision(device: str) -> Figures:
    """bf16 and fp16 weights change, and come back to the bit."""
    kinds = (torch.bfloat16, torch.float16)
    for dtype in kinds:
        for family in FAMILIES:
            model = toy_model(family, dtype=dtype).to(device)
            editor, before = editor_of(model), weights(model)
            editor.edit(REQUESTS)
            moved = [not same_bits(now, before[name]) for name, now in weights(model).items()]
            assert any(moved), f"{family} in {dtype}: no weight changed"
            assert all(now.isfinite().all() for now in weights(model).values())
            rollback_all(model)
            assert_unchanged(model, before)
    return {"edits": len(kinds) * len(FAMILIES)}


def quantized_weights(device: str) -> Figures:
    """Layers of bitsandbytes in 8 and 4 bits are edited at their outputs, and undone to the bit."""
    network = toy_network(plain := wide_model(), tokenizer_for(plain), edit_lr=1e-3).to(device)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            model = quantized_model(kind, Path(folder), device=device)
            hparams = toy_hparams(toy_targets(model), apply="output")
            editor = MendParallel(model, tokenizer_for(model), hparams, network=network)
            before = logits(model)
            result = editor.edit(REQUESTS)
            assert (logits(model) - before).abs().max() > 1e-2 * before.abs().max()
            result.rollback()
            assert torch.equal(logits(model), before)
    return {"edits": len(KINDS)}


def scopes(device: str) -> Figures:
    """An edit with a scope acts on its prompt, and leaves other text to the bit."""
    model = toy_model("llama").to(device)
    editor = scoped_editor(model)
    prompts = [one["prompt"] for one in THREE]
    other = ["the sun rises in the"]
    plain, elsewhere = next_tokens(model, prompts), next_tokens(model, other)
    editor.edit(THREE)
    assert not torch.equal(next_tokens(model, prompts), plain)
    assert torch.equal(next_tokens(model, other), elsewhere)
    rollback_all(model)
    assert torch.equal(next_tokens(model, prompts), plain)
    return {"edits": len(THREE)}


def saved_edits(device: str) -> Figures:
    """An edit that was made on the device and saved is the same edit on the CPU, and back."""
    model = toy_model("llama").to(device)
    result = editor_of(model).edit(REQUESTS)
    with tempfile.TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "edit.safetensors")
        edited = weights(model)
        result.rollback()
        again, elsewhere = toy_model("llama").to(device), toy_model("llama")
        for one in (again, elsewhere):
            load_edit(path).apply(one)
    base = weights(toy_model("llama"))
    for name, weight in edited.items():
        largest = (weight.cpu() - base[name]).abs().max()
        for one in (again, elsewhere):
            apart = (one.get_parameter(name).detach().cpu() - weight.cpu()).abs().max()
            assert apart <= 1e-3 * largest
    return {"edits": 3}


CHECKS: dict[str, Callable[[str], Figures]] = {
    check.__name__: check
    for check in (
        one_device,
        same_as_the_method,
        offloaded_weights,
        several_devices,
        half_precision,
        quantized_weights,
        scopes,
        saved_edits,
    )
}


def equals_oracle(plain: Any, place: Callable[[Any], Any]) -> None:
    """An edit of `plain` as `place` places it is the method's own, and comes off to the bit."""
    names = toy_targets(plain)
    network = toy_network(plain, tokenizer_for(plain))
    options = toy_hparams(names).to_dict()
    expected = oracle_edit(
        plain, tokenizer_for(plain), REQUEST, names, network.state_dict(), options
    )
    model = place(copy.deepcopy(plain))
    before = all_stored(model, names)
    editor = editor_of(model)
    result = editor.edit(REQUEST)
    after = all_stored(model, names)
    for name in names:
        apart = (after[name].double() - expected[name].after).abs().max()
        largest = expected[name].change.abs().max()
        assert apart <= TOLERANCE * largest, f"{name}: off by {apart / largest:.1e} of the change"
    result.rollback()
    found = all_stored(model, names)
    assert all(same_bits(found[name], before[name]) for name in names), "the undo is not exact"


def editor_of(model: Any, apply: str = "weight") -> MendParallel:
    """An editor of a toy model, with its family's network where the package puts it."""
    plain = toy_model(model.config.model_type)
    names = toy_targets(model)
    network = toy_network(plain, tokenizer_for(plain))
    hparams = toy_hparams(names, apply=apply)
    home = next(places(model, names), torch.device("cpu"))
    return MendParallel(model, tokenizer_for(model), hparams, network=network.to(home))


def places(model: Any, names: list[str]) -> Iterator[torch.device]:
    """The devices of the weights that are somewhere, the highest first."""
    for name in reversed(names):
        device = model.get_parameter(name).device
        if device.type != "meta":
            yield device


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return make_batch(model, tokenizer_for(model), as_requests(REQUESTS)).logits(model)


def next_tokens(model: Any, texts: list[str]) -> torch.Tensor:
    tokenizer = tokenizer_for(model)
    found = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
            found.append(model(input_ids=ids).logits[0, -1])
    return torch.stack(found)


def where(device: str) -> Any:
    """`device` as accelerate names it: a number for an accelerator."""
    index = device.partition(":")[2]
    return int(index) if index else device


def accelerators(device: str) -> int:
    """How many devices there are of this kind; 1 for the CPU."""
    kind = device.partition(":")[0]
    return 1 if kind == "cpu" else torch.get_device_module(kind).device_count()


def main() -> None:
    name, device = sys.argv[1:]
    logging.disable(logging.WARNING)
    print(json.dumps(CHECKS[name](device)))


if __name__ == "__main__":
    main()
