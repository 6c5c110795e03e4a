"""Measures what an edit needs over the model, with `apply: weight` and with `apply: output`.

    PYTHONPATH=tests python scripts/measure_apply.py

Three blocks of Llama-2-7B's widths in bf16 with nine targets, a small network (its own size is not
the matter here), one request; each option in a process of its own. Linux only.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from toys import VOCABULARY, tokenizer_for, toy_hparams, toy_targets
from transformers import LlamaConfig, LlamaForCausalLM

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.weights.target import find_targets

REQUEST = {
    "prompt": "the river that runs through the old town by the sea is the name of my cat in",
    "target_new": "Oslo and Rome",
}


def status(field: str) -> float:
    """A field of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def blocks() -> Any:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=3,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:  # rows that differ; what they are does not matter
                parameter.copy_(torch.randn(parameter.shape[1]) / parameter.shape[1] ** 0.5)
                parameter.mul_(1 + torch.randn(parameter.shape[0], 1))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def network_for(model: nn.Module, hparams: Any) -> Hypernetwork:
    network = Hypernetwork(find_targets(model, hparams.inner_params), hparams.network_config())
    for part in network.mend.values():
        for statistic in part.buffers(recurse=False):
            if statistic.is_floating_point():
                statistic.fill_(1)
    return network.eval()


def measure(apply: str) -> None:
    model = blocks()
    hparams = toy_hparams(toy_targets(model), apply=apply, rank=16, edit_lr=1e-4)
    tokenizer = tokenizer_for(model)
    editor = MendParallel(model, tokenizer, hparams, network=network_for(model, hparams))
    with torch.no_grad():
        make_batch(model, tokenizer, as_requests(REQUEST)).logits(model)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    anonymous, resident = status("RssAnon"), status("VmRSS")

    result = editor.edit(REQUEST)

    update = next(iter(result.updates.values()))
    rows = sum(one.keys.nbytes + one.values.nbytes for one in result.updates.values())
    backups = sum(weight.nbytes for weight in result.entry.before().values())
    gc.collect()
    print(
        f"apply: {apply}: {len(result.updates)} targets, {len(update.keys)} tokens; rows "
        f"{rows / 2**20:.1f} MiB, backups {backups / 2**20 if apply == 'weight' else 0:.1f} MiB; "
        f"the process at its peak +{status('VmHWM') - resident:.0f} MiB, "
        f"afterwards +{status('RssAnon') - anonymous:.0f} MiB"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for apply in ("weight", "output"):
            subprocess.run([sys.executable, __file__, apply], check=True)
