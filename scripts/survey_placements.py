"""Counts on how many of the 36 simulated placements EasyEdit's own MEND edits as on one device.

    EASYEDIT_HOME=clone PYTHONPATH=tests python scripts/survey_placements.py

Beside it, this package on the same placements. Simulated accelerators, tiny models, fp32.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import simulated_accelerators
from accelerate import dispatch_model
from placements import PLACEMENTS, device_map
from toys import (
    REQUEST,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import MendParallel, save_archive

NAMES = {"llama": "llama", "mistral": "mistral", "gpt2": "gpt2", "gptj": "gpt-j"}
CLASSES = {"gpt2": "GPT2LMHeadModel", "gptj": "GPTJForCausalLM"}


def host_edit(model: Any, family: str, archive: Path) -> None:
    from easyeditor.models.mend.mend_main import MendRewriteExecutor

    hparams = toy_hparams(toy_targets(model), archive=str(archive), model_name=NAMES[family])
    hparams.model_class = CLASSES.get(family, "LlamaForCausalLM")
    hparams.device = str(next(model.parameters()).device)
    hparams.model_parallel = hasattr(model, "hf_device_map")
    tokenizer = tokenizer_for(model)
    MendRewriteExecutor().apply_to_model(model, tokenizer, [REQUEST], hparams)


def own_edit(model: Any, family: str, archive: Path) -> None:
    hparams = toy_hparams(toy_targets(model), archive=str(archive))
    MendParallel(model, tokenizer_for(model), hparams).edit(REQUEST)


def is_same_edit(edit: Callable[[Any, str, Path], None], name: str, archive: Path) -> str:
    """ "yes", or why not."""
    family, blocks, head = PLACEMENTS[name]
    one_device = toy_model(family)
    names = toy_targets(one_device)
    before = weights(one_device, names)
    save_archive(
        archive,
        toy_network(one_device, tokenizer_for(one_device)),
        model_config=one_device.config.to_dict(),
    )
    model = copy.deepcopy(one_device)
    model = dispatch_model(model, device_map(model, blocks, head), main_device="sim:0")
    edit(one_device, family, archive)
    try:
        edit(model, family, archive)
    except Exception as error:  # whatever the host raises is its answer
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    for target in names:
        edited = one_device.get_parameter(target).detach()
        change = (edited - before[target]).abs().max()
        if (model.get_parameter(target).detach().cpu() - edited).abs().max() > 1e-4 * change:
            return "other weights"
    return "yes"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    sys.path.insert(0, os.environ["EASYEDIT_HOME"])
    simulated_accelerators.load()
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for name in PLACEMENTS:
            answers = [
                is_same_edit(edit, name, Path(folder, "archive")) for edit in (host_edit, own_edit)
            ]
            counts = [n + (a == "yes") for n, a in zip(counts, answers, strict=True)]
            print(f"{name:24} EasyEdit: {answers[0]:60} here: {answers[1]}", flush=True)
    print(f"of {len(PLACEMENTS)}: EasyEdit {counts[0]}, here {counts[1]}")


if __name__ == "__main__":
    main()
