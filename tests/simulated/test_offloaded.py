"""Weights that only visit the accelerator, kept in RAM, in accelerate's files or in the user's
checkpoint, are edited as on one device: the next forward pass sees it, rollback gives every bit
back, and no file is written.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from offloads import KINDS, all_stored, digests, from_checkpoint, logits_of, offloaded, stored
from oracle import assert_same_edit
from placements import device_map
from torch import Tensor, nn
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

from easyedit_mend_parallel import MendParallel, PlacementError, rollback_all

MODELS = {"llama": ("llama", False), "gpt2-tied": ("gpt2", True)}
Weights = dict[str, Tensor]


@functools.cache
def prepared(which: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A toy model and a network for it; whoever changes the model copies it first."""
    family, tied = MODELS[which]
    model = toy_model(family, tied=tied, dtype=dtype)
    return model, toy_network(model, tokenizer_for(model), toy_targets(model, last=4))


class Pair:
    """A model on the CPU, and its twin that computes on an accelerator and is kept elsewhere."""

    def __init__(self, kind: str, folder: Path, which: str = "llama", **options: Any) -> None:
        model, self.network = prepared(which, options.pop("dtype", torch.float32))
        self.plain = copy.deepcopy(model)
        self.names = toy_targets(self.plain, last=4)
        self.base = weights(self.plain, self.names)
        self.folder = folder
        self.model = offloaded(copy.deepcopy(self.plain), kind, folder, 0)
        self.editor = self.editor_of(self.model, **options)

    def editor_of(self, model: Any, **options: Any) -> MendParallel:
        network = copy.deepcopy(self.network)
        if model is not self.plain:
            network = network.to("sim:0")
        hparams = toy_hparams(self.names, **options)
        return MendParallel(model, tokenizer_for(model), hparams, network=network)

    def assert_same(self, other: Weights | None = None) -> None:
        """The twin's weights equal those of the edit on one device, or are the bits `other`."""
        for name, weight in all_stored(self.model, self.names).items():
            if other is not None:
                assert same_bits(weight, other[name]), name
            else:
                assert_same_edit(weight, self.plain.get_parameter(name), self.base[name])

    def assert_same_forward(self) -> None:
        ours, theirs = logits_of(self.model), logits_of(self.plain)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_offloaded_weights_equals_the_edit_on_one_device(
    kind: str, limit: int | None, which: str, tmp_path: Path
) -> None:
    pair = Pair(kind, tmp_path, which, overlay_limit=limit)
    files, unedited = digests(tmp_path), logits_of(pair.model)
    pair.assert_same(pair.base)

    result = pair.editor.edit(REQUESTS)
    pair.editor_of(pair.plain).edit(REQUESTS)

    assert {placement.kept for placement in result.placements.values()} == KINDS[kind]
    pair.assert_same()
    for _ in range(2):
        edited, expected = logits_of(pair.model), logits_of(pair.plain)
        torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    assert (edited - unedited).abs().max() > 100 * (edited - expected).abs().max()
    before = result.entry.before()
    assert all(same_bits(before[name].cpu(), pair.base[name]) for name in pair.names)

    result.rollback()
    pair.assert_same(pair.base)
    assert torch.equal(logits_of(pair.model), unedited)
    assert digests(tmp_path) == files


@pytest.mark.parametrize("limit", [None, 0, 2000], ids=["in-memory", "private-files", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_edits_add_up_and_come_out_in_any_order(
    kind: str, limit: int | None, tmp_path: Path
) -> None:
    pair = Pair(kind, tmp_path, overlay_limit=limit)
    unedited = logits_of(pair.model)
    plain = pair.editor_of(pair.plain)
    ours = [pair.editor.edit(request) for request in REQUESTS]
    theirs = [plain.edit(request) for request in REQUESTS]
    pair.assert_same()

    for which in (1, 0):
        ours[which].rollback()
        theirs[which].rollback()
        pair.assert_same()
        torch.testing.assert_close(
            logits_of(pair.model), logits_of(pair.plain), rtol=1e-4, atol=1e-4
        )
    ours[2].rollback()
    pair.assert_same(pair.base)

    for request in REQUESTS:
        pair.editor.edit(request)  # held by nobody
    rollback_all(pair.model)
    pair.assert_same(pair.base)
    assert torch.equal(logits_of(pair.model), unedited)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_new_weight_is_formed_in_its_own_dtype(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    pair = Pair(kind, tmp_path, dtype=dtype, overlay_limit=2000)

    result = pair.editor.edit(REQUESTS)

    for target in pair.editor.targets:
        expected = pair.base[target.name].clone()
        result.updates[target.name].to(torch.device("cpu")).write(expected, target.transposed)
        weight = stored(pair.model, target.name)
        assert weight.dtype == dtype
        # where the weight is on the accelerator, sums of products may round in another order
        torch.testing.assert_close(weight, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    result.rollback()
    pair.assert_same(pair.base)


@pytest.mark.parametrize("kind", ["all-ram", "all-dat", "both-ram", "both-dat", "both-safetensors"])
@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
def test_a_tied_target_is_edited_under_each_of_its_names(
    kind: str, limit: int | None, tmp_path: Path
) -> None:
    """The head's weight is that of the embeddings, which the next forward pass looks up too."""
    plain = toy_model("llama", tied=True)
    names = ["model.layers.5.mlp.up_proj.weight", "lm_head.weight"]
    network = toy_network(plain, tokenizer_for(plain), names)
    base = all_stored(plain, names)
    model = copy.deepcopy(plain)
    if kind.startswith("all"):
        model = offloaded(model, kind, tmp_path, 0)
    else:
        where = "cpu" if kind == "both-ram" else "disk"
        places: dict[str, Any] = device_map(model, (0,) * BLOCKS, 0, name=int)
        places |= {"model.embed_tokens": where, "lm_head": where}
        if kind == "both-safetensors":
            model = from_checkpoint(model, tmp_path, places)
        else:
            model = dispatch_model(
                model, places, main_device=0, offload_dir=str(tmp_path / "offload")
            )
    try:
        unedited = logits_of(model)
    except KeyError as error:  # transformers 5.5: `lm_head.weight` is not in the checkpoint
        pytest.skip(f"this model cannot be called, edited or not: KeyError {error}")
    files = digests(tmp_path)
    hparams = toy_hparams(names, overlay_limit=limit)
    tokenizer = tokenizer_for(plain)
    remote = copy.deepcopy(network).to("sim:0")

    result = MendParallel(model, tokenizer, hparams, network=remote).edit(REQUEST)
    again = MendParallel(model, tokenizer, hparams, network=remote).edit(REQUESTS[1])
    MendParallel(plain, tokenizer, hparams, network=network).edit(REQUEST)
    MendParallel(plain, tokenizer, hparams, network=network).edit(REQUESTS[1])

    head, embeddings = stored(model, "lm_head.weight"), stored(model, "model.embed_tokens.weight")
    assert same_bits(head, embeddings)
    assert_same_edit(head, plain.lm_head.weight, base["lm_head.weight"])
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=1e-4, atol=1e-4)
    result.rollback()
    again.rollback()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert same_bits(stored(model, name), base["lm_head.weight"])
    assert torch.equal(logits_of(model), unedited)
    assert digests(tmp_path) == files


@pytest.mark.parametrize("head", ["cpu", "disk"])
def test_a_tied_weight_in_two_places_is_refused(head: str, tmp_path: Path) -> None:
    plain = toy_model("llama", tied=True)
    names = ["lm_head.weight"]
    network = toy_network(plain, tokenizer_for(plain), names)
    places: dict[str, Any] = device_map(plain, (0,) * BLOCKS, 0, name=int) | {"lm_head": head}
    model = dispatch_model(plain, places, main_device=0, offload_dir=str(tmp_path))
    logits_of(model)

    with pytest.raises(PlacementError, match=r"lm_head\.weight .* tied.*one place in device_map"):
        MendParallel(model, tokenizer_for(model), toy_hparams(names), network=network)


def test_a_module_that_loads_its_childrens_weights_is_found(tmp_path: Path) -> None:
    """`preload_module_classes`: the hook is then on the MLP, not on the layers within."""
    plain = toy_model("llama")
    names = toy_targets(plain)
    network = toy_network(plain, tokenizer_for(plain))
    places: dict[str, Any] = device_map(plain, (0,) * BLOCKS, 0, name=int)
    places |= {"model.layers.4": "cpu", "model.layers.5": "disk"}
    model = dispatch_model(
        copy.deepcopy(plain),
        places,
        main_device=0,
        offload_dir=str(tmp_path),
        preload_module_classes=["LlamaMLP"],
    )
    unedited = logits_of(model)
    tokenizer = tokenizer_for(plain)
    remote = copy.deepcopy(network).to("sim:0")

    result = MendParallel(model, tokenizer, toy_hparams(names), network=remote).edit(REQUEST)
    MendParallel(plain, tokenizer, toy_hparams(names), network=network).edit(REQUEST)

    kept = {name: placement.kept for name, placement in result.placements.items()}
    assert [kept[name] for name in names[::3]] == ["resident", "ram", "dat"]
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=1e-4, atol=1e-4)
    result.rollback()
    assert torch.equal(logits_of(model), unedited)


# --- dispatched anew since the edit


def to_memory(pair: Pair) -> None:
    """Take the twin's hooks away: accelerate loads every weight that it can reach."""
    remove_hook_from_submodules(pair.model)
    vars(pair.model).pop("hf_device_map", None)
    nn.Module.to(pair.model, "cpu")


def anew(pair: Pair, kind: str, folder: Path) -> None:
    """Dispatch the twin again, in another way, with the edits that are in it."""
    to_memory(pair)
    if kind == "resident":
        places = device_map(pair.model, (0, 0, 0, 1, 1, 1), 1)
        dispatch_model(pair.model, places, main_device="sim:0")
    else:
        offloaded(pair.model, kind, folder, 0)


WAYS = ["resident", "all-ram", "all-dat", "targets-ram", "targets-dat"]


@pytest.mark.parametrize("limit", [None, 0], ids=["in-memory", "private-files"])
@pytest.mark.parametrize("then", WAYS)
@pytest.mark.parametrize("first", WAYS[1:])
def test_edits_come_out_where_the_weights_are_by_then(
    first: str, then: str, limit: int | None, tmp_path: Path
) -> None:
    pair = Pair(first, tmp_path / "first", overlay_limit=limit)
    plain = pair.editor_of(pair.plain)
    results, expected = [], []
    for request in REQUESTS[:2]:
        results.append(pair.editor.edit(request))
        expected.append(plain.edit(request))

    anew(pair, then, tmp_path / "then")
    files = digests(tmp_path)
    pair.assert_same()
    results.append(pair.editor.edit(REQUESTS[2]))
    expected.append(plain.edit(REQUESTS[2]))
    for which in (1, 2):  # one from before, in the middle, and one from after
        results[which].rollback()
        expected[which].rollback()
        pair.assert_same()
    results[0].rollback()

    pair.assert_same(pair.base)
    torch.testing.assert_close(logits_of(pair.model), logits_of(toy_model("llama")))
    assert digests(tmp_path) == files


@pytest.mark.parametrize("then", WAYS[1:])
def test_edits_of_resident_weights_come_out_once_they_are_offloaded(
    then: str, tmp_path: Path
) -> None:
    pair = Pair("all-ram", tmp_path)
    anew(pair, "resident", tmp_path)
    results = [pair.editor.edit(request) for request in REQUESTS]
    anew(pair, then, tmp_path / "then")

    results[1].rollback()
    rollback_all(pair.model)

    pair.assert_same(pair.base)
    assert not any(result.entry.applied for result in results)
