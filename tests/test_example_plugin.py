"""The example of docs/plugins.md: its page shows its code, its method is gradient descent, and its
store keeps backups on disk and undoes to the bit. How it is installed and run by EasyEdit is in
tests/hosts.
"""

from __future__ import annotations

import copy
import gc
import importlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from easyedit_mend_parallel import MendParallel, UpdateError, rollback_all
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights.stores.resident import ResidentStaged
from easyedit_mend_parallel.weights.target import find_targets

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLE = DOCS / "examples" / "easyedit-gradient-steps"
BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block of the page that says which file it is from."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("easyedit_gradient_steps.method")


@pytest.fixture
def files(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example's store in use, and the folder in which its files lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("EASYEDIT_BACKUPS", "disk")
    store = importlib.import_module("easyedit_gradient_steps.store")
    plugin_manager().register(store)
    yield tmp_path
    plugin_manager().unregister(store)


def test_the_page_shows_every_line_of_the_example_and_no_other() -> None:
    left = {path: (EXAMPLE / path).read_text(encoding="utf-8") for path in sorted(sources())}

    for path, block in BLOCK.findall((DOCS / "plugins.md").read_text(encoding="utf-8")):
        assert block in left[path], f"docs/plugins.md shows a block that is not in {path}:\n{block}"
        left[path] = left[path].replace(block, "", 1)

    assert {path: text for path, text in left.items() if text.strip()} == {}


def sources() -> set[str]:
    code = {str(path.relative_to(EXAMPLE)) for path in EXAMPLE.glob("*/*.py")}
    return code | {"pyproject.toml"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_method_is_gradient_descent(example: Any, family: str) -> None:
    model, tokenizer = toys.toy_model(family), toys.toy_tokenizer()
    names = toys.toy_targets(model)
    batch = make_batch(model, tokenizer, as_requests(toys.REQUESTS))
    descended = copy.deepcopy(model)
    weights = [descended.get_parameter(name) for name in names]
    for _ in range(3):
        gradients = torch.autograd.grad(batch.losses(batch.logits(descended)).sum(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(0.05 * gradient)
    before = toys.weights(model)

    updates = example.descend(model, find_targets(model, names), batch, rate=0.05, steps=3)

    toys.assert_unchanged(model, before)
    for name, target in zip(names, find_targets(model, names), strict=True):
        updates[name].write(model.get_parameter(name).detach(), target.transposed)
        change = (descended.get_parameter(name) - before[name]).abs().max()
        apart = (descended.get_parameter(name) - model.get_parameter(name)).abs().max()
        assert change > 1e-3
        assert apart <= 1e-4 * change


def edited(model: Any, *requests: Any) -> list[Any]:
    tokenizer = toys.toy_tokenizer()
    network = toys.toy_network(model, tokenizer)
    hparams = toys.toy_hparams(toys.toy_targets(model))
    editor = MendParallel(model, tokenizer, hparams, network=network)
    return [editor.edit(request) for request in requests]


def test_the_store_keeps_backups_on_disk_and_undoes_to_the_bit(files: Path) -> None:
    model = toys.toy_model("llama", dtype=torch.bfloat16)
    plain = copy.deepcopy(model)
    before, names = toys.weights(model), toys.toy_targets(model)

    first, second = edited(model, *toys.REQUESTS[:2])

    backups = list(files.rglob("*.safetensors"))
    assert len(backups) == 2 * len(names)
    assert all(toys.same_bits(first.entry.before()[name], before[name]) for name in names)
    first.rollback()  # from under the second
    assert not all(torch.equal(model.get_parameter(name), before[name]) for name in names)
    second.rollback()
    toys.assert_unchanged(model, before)
    gc.collect()
    assert list(files.iterdir()) == []
    edited(model, *toys.REQUESTS)
    rollback_all(model)
    toys.assert_unchanged(model, before)
    plugin_manager().unregister(importlib.import_module("easyedit_gradient_steps.store"))
    edited(plain, toys.REQUEST)
    plugin_manager().register(importlib.import_module("easyedit_gradient_steps.store"))
    edited(model, toys.REQUEST)
    toys.assert_unchanged(model, toys.weights(plain))


def test_a_backup_that_cannot_be_written_changes_nothing(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.toy_model("llama")
    before = toys.weights(model)
    monkeypatch.setattr(tempfile, "tempdir", str(files / "not there"))

    with pytest.raises(UpdateError, match="unset EASYEDIT_BACKUPS"):
        edited(model, toys.REQUEST)

    toys.assert_unchanged(model, before)


def test_the_store_is_used_only_when_it_is_asked_for(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EASYEDIT_BACKUPS")

    (result,) = edited(toys.toy_model("llama"), toys.REQUEST)

    staged = result.entry._record.staged.values()
    assert {type(one) for one in staged} == {ResidentStaged}
    assert list(files.iterdir()) == []
