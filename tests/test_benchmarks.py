"""What the benchmarks compare does the same work, and the page says what was measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from benchmarks import evaluating, report
from benchmarks.limit import Limit
from benchmarks.plain_mend import PlainMend
from benchmarks.rounds import compared
from benchmarks.scopes import measured
from benchmarks.shapes import Shape, requests, tokenizer, twin
from toys import same_bits

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.weights.target import find_targets

SHAPE = Shape("tiny", 4, 32, 48, 2, 2, 300, rank=8)


def test_mend_in_plain_autograd_makes_the_packages_edit_and_takes_it_back() -> None:
    model = SHAPE.model()
    before = {name: model.get_parameter(name).detach().clone() for name in SHAPE.targets}
    network = SHAPE.network(model)
    network.edit_lrs.fill_(1e-2)  # a change that fp32 can tell from rounding
    editor = MendParallel(model, tokenizer(), SHAPE.hparams(), network=network)
    result = editor.edit(requests(1))
    ours = {name: model.get_parameter(name).detach() - before[name] for name in SHAPE.targets}
    result.rollback()

    restore = PlainMend(model, tokenizer(), SHAPE.targets, network).edit(requests(1))

    for name, change in ours.items():
        theirs = model.get_parameter(name).detach() - before[name]
        assert change.abs().max() > 0
        torch.testing.assert_close(theirs, change, rtol=1e-3, atol=1e-8)
    restore()
    assert all(same_bits(model.get_parameter(name), bits) for name, bits in before.items())


def test_the_limit_sees_the_rows_that_an_edit_sees() -> None:
    model = SHAPE.model()
    asked = requests(1)
    batch = make_batch(model, tokenizer(), as_requests(asked))
    rows, _ = capture(model, find_targets(model, SHAPE.targets), batch)

    ids = batch.inputs["input_ids"]
    found = Limit(twin(model), SHAPE.targets, ids, 2, SHAPE.network(model)).rows()

    for name, (x, delta) in zip(SHAPE.targets, found, strict=True):
        torch.testing.assert_close(x, rows[name].x)
        torch.testing.assert_close(delta, rows[name].delta)


def test_a_twin_shares_weights_and_no_hooks() -> None:
    model = SHAPE.model()
    other = twin(model)
    name = SHAPE.targets[0]

    other.get_parameter(name).data.fill_(3)
    other.register_forward_hook(lambda *_: pytest.fail("the twin's hook ran"))

    assert (model.get_parameter(name) == 3).all()
    model(torch.tensor([[1, 2]]))


def test_the_scopes_of_a_benchmark_fire_in_the_texts_where_they_should() -> None:
    found = measured(Shape("tiny", 6, 32, 48, 2, 2, 300, rank=8), 400, 1)

    assert found["edits"] == 400
    assert found["text"].keys() > {"without", "no scope fires", "one fires"}
    assert found["token"].keys() == {"without", "no scope fires"}


def test_the_time_of_measuring_edits_is_without_that_of_the_edits() -> None:
    tiny = Shape("tiny", 6, 32, 48, 2, 2, 300, rank=8)
    found = evaluating.measured(tiny, None, count=3, rounds=1, beside=False)

    assert found["requests"] == 3
    assert found["of"].keys() == {evaluating.PACKAGE}
    assert len({example.request.prompt for example in evaluating.examples(16)}) == 16


def test_ratios_are_of_the_same_round() -> None:
    found = compared({"slow": [2.0, 20.0, 4.0], "base": [1.0, 10.0, 2.0]}, "base")

    assert found["slow"]["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["base"]["seconds"]["median"] == 2.0


def test_the_page_has_the_tables_that_its_figures_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report.read_figures()
    page = report.PAGE.read_text(encoding="utf-8")
    shutil.copy(report.PAGE, tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / report.PAGE.name)
    monkeypatch.setattr(report, "DOCS", tmp_path)

    report.write_page(found)

    assert found
    assert report.PAGE.read_text(encoding="utf-8") == page
