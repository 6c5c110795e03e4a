"""Where both define a figure, an evaluation of this package gives the numbers of EasyEdit's own
`compute_edit_quality`: of decoders, teacher-forced, before an edit and after it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import toys
from host_toys import TODAY, make_toy

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere
from easyedit_mend_parallel.evaluation import Evaluation, evaluate

RECORDS = [
    {
        "prompt": "the capital of France is",
        "target_new": "Rome and Oslo",
        "ground_truth": "Paris",
        "rephrase_prompt": "some people say that the capital of France is",
        "locality": {
            "near": {"prompt": "water boils at", "ground_truth": "one hundred degrees"},
            "far": {"prompt": "who wrote", "ground_truth": "Hamlet"},
        },
        "portability": {"one_hop": {"prompt": "the river is", "ground_truth": "red and blue"}},
    },
    {
        "prompt": "who wrote Hamlet",
        "target_new": "Shakespeare",
        "ground_truth": "a cat",
        "rephrase_prompt": "my old cat wrote",
        "locality": {
            "near": {
                "prompt": ["the sun rises in the", "my cat sat on the old"],
                "ground_truth": ["east and sets in the west", "mat"],
            }
        },
        "portability": {
            "one_hop": {"prompt": ["my name is", "a town by"], "ground_truth": ["Oslo", "the sea"]}
        },
    },
]


def asked_by_the_host(model: Any, tokenizer: Any, hparams: Any, record: dict[str, Any]) -> Any:
    quality = importlib.import_module("easyeditor.evaluate.evaluate")
    device = "cpu" if TODAY else 0
    if TODAY:
        return quality.compute_edit_quality(
            model, "llama", hparams, tokenizer, dict(record), device
        )
    with cuda_elsewhere():
        return quality.compute_edit_quality(
            model, "llama", hparams, tokenizer, dict(record), device
        )


def means(values: Any) -> float:
    flat = [float(one) for one in (values if isinstance(values, list) else [values])]
    return sum(flat) / len(flat)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [False, True])
def test_the_figures_of_each_request_are_those_of_easyedit(
    bos: bool, side: str, tmp_path: Path
) -> None:
    tokenizer = toys.toy_tokenizer(side=side, bos=bos)
    toy = make_toy(tmp_path, tokenizer=tokenizer)
    hparams = toy.hparams(tmp_path)
    editor = MendParallel(toy.model, tokenizer, hparams)
    edited: list[tuple[dict[str, Any], Any]] = []
    for record in RECORDS:
        found: Evaluation = evaluate(toy.model, tokenizer, [record], editor.edit, free=False)
        before = asked_by_the_host(toy.model, tokenizer, hparams, record)
        result = editor.edit(record)
        after = asked_by_the_host(toy.model, tokenizer, hparams, record)
        result.rollback()

        for ours, theirs in ((found.before, before), (found.after, after)):
            for name in ("rewrite_acc", "rephrase_acc"):
                assert ours[name].mean == pytest.approx(means(theirs[name]))
            mine = ours["portability.one_hop_acc"].mean
            assert mine == pytest.approx(means(theirs["portability"]["one_hop_acc"]))
        edited.append((record, after))
        changed = False
        for name in record["locality"]:
            was = before["locality"][f"{name}_output"]
            now = after["locality"][f"{name}_output"]
            same = [
                sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
                for one, other in zip(was, now, strict=True)
            ]
            assert found.after[f"locality.{name}_acc"].mean == pytest.approx(means(same))
            changed |= was != now
        assert changed or before["rewrite_acc"] != after["rewrite_acc"]

    together = evaluate(toy.model, tokenizer, RECORDS, editor.edit, free=False).after
    for name in ("rewrite_acc", "rephrase_acc"):
        of_each = [means(after[name]) for _, after in edited]
        assert together[name].mean == pytest.approx(sum(of_each) / len(of_each))
    of_each = [means(after["portability"]["one_hop_acc"]) for _, after in edited]
    assert together["portability.one_hop_acc"].mean == pytest.approx(sum(of_each) / len(of_each))
    assert together["portability.one_hop_acc"].n == len(RECORDS)
