"""A model is edited where it lies on disk: its blocks are read once for a batch, however many
requests it has, and what `make demo-large` does with a 7B holds for a small shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import OffloadedWeightsLoader
from toys import (
    BLOCKS,
    REQUESTS,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
)
from transformers import LlamaForCausalLM

from easyedit_mend_parallel import MendParallel

TRUNK = [f"model.layers.{block}.mlp.up_proj.weight" for block in range(BLOCKS - 3)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each weight was read from disk."""
    counted: Counter[str] = Counter()
    read = OffloadedWeightsLoader.__getitem__

    def counting(loader: OffloadedWeightsLoader, key: str) -> Any:
        counted[key] += 1
        return read(loader, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counting)
    return counted


@pytest.mark.parametrize("apply", ["weight", "output"])
@pytest.mark.parametrize("n_requests", [1, len(REQUESTS)])
def test_the_requests_of_a_batch_share_one_pass_over_blocks_on_disk(
    n_requests: int, apply: str, tmp_path: Path, reads: Counter[str]
) -> None:
    toy = toy_model("llama")
    names = toy_targets(toy)
    network = toy_network(toy, tokenizer_for(toy))
    toy.save_pretrained(tmp_path / "model")
    places = {f"model.layers.{block}": "disk" for block in range(BLOCKS)}
    ends = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=places | dict.fromkeys(ends, "cpu"),
        offload_folder=str(tmp_path / "offload"),
    )
    hparams = toy_hparams(names, apply=apply)
    editor = MendParallel(model, tokenizer_for(toy), hparams, network=network)
    editor.edit(REQUESTS[1:]).rollback()  # gathers the text that is held still, once for a model
    reads.clear()

    editor.edit(REQUESTS[:n_requests])

    assert {name: reads[name] for name in TRUNK} == dict.fromkeys(TRUNK, 1)


def test_the_large_demo_edits_a_small_shape_in_every_way_and_restores_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "easyedit_mend_parallel.demo.large"]
    shown = subprocess.run(
        [*command, "--shape", "small", "--folder", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )

    assert shown.returncode == 0, shown.stdout[-5000:]
    assert shown.stdout.count("restored to the bit: yes") == 3
