"""Scoped edits over simulated accelerators: each text gets the update that it gets on one device,
and a folder of them goes from any placement to any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from placements import PLACEMENTS, device_map
from scoped_toys import THREE, base_logits, editor_of, logits
from toys import same_bits, tokenizer_for, toy_model

from easyedit_mend_parallel import load_scoped, rollback_all, save_scoped

CUTS = ["llama-cut-at-2", "llama-cut-at-3", "llama-cut-at-5", "gpt2-cut-at-4", "gptj-three-devices"]
TEXTS = [*(request["prompt"] for request in THREE), "some people say that blue"]


def spread(placement: str) -> Any:
    family, blocks, head = PLACEMENTS[placement]
    model = toy_model(family)
    return dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.cpu() - other.cpu()).abs().max() <= 1e-4 * other.cpu().abs().max())


@pytest.mark.parametrize("placement", CUTS)
def test_texts_feel_what_they_feel_on_one_device(placement: str) -> None:
    model, plain = spread(placement), toy_model(PLACEMENTS[placement][0])
    before = logits(model, TEXTS)
    for one in (model, plain):
        editor_of(one).edit(THREE)
    felt = logits(model, TEXTS)
    assert close(felt, logits(plain, TEXTS))
    for number in range(3):
        assert not close(felt[number], before[number])
    assert same_bits(felt[3].cpu(), before[3].cpu())
    rollback_all(model)
    assert same_bits(logits(model, TEXTS).cpu(), before.cpu())


def test_a_folder_goes_from_any_placement_to_any_other(tmp_path: Path) -> None:
    models = {
        "one": toy_model("llama"),
        "two": spread("llama-cut-at-5"),
        "three": spread("llama-three-devices"),
    }
    for name, model in models.items():
        editor_of(model).edit(THREE)
        folder = save_scoped(model, tmp_path / name)
        felt = logits(model, TEXTS).cpu()
        for other in (
            toy_model("llama"),
            toy_model("llama").to("sim:1"),
            spread("llama-cut-at-5"),
            spread("llama-three-devices"),
        ):
            loaded = load_scoped(folder, other, tokenizer_for(other))
            assert close(logits(other, TEXTS), felt)
            assert not close(logits(other, TEXTS), base_logits(other, TEXTS))
            loaded[0].rollback()
            assert same_bits(logits(other, TEXTS).cpu(), base_logits(other, TEXTS).cpu())
        rollback_all(model)
        load_scoped(folder, model, tokenizer_for(model))
        assert same_bits(logits(model, TEXTS).cpu(), felt)
