"""SmolLM2-135M-Instruct as the scripts here measure it. Knows nothing of what is measured."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel.demo import demo_hparams
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.texts import Texts
from easyedit_mend_parallel.hparams import MENDParallelHyperParams
from easyedit_mend_parallel.weights.target import Target, find_targets


def loaded() -> tuple[Texts, list[Target], MENDParallelHyperParams]:
    """The model with its tokenizer, hidden states below the targets kept; the demo's targets and
    hyperparameters."""
    directory = prepare()
    model = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    hparams = MENDParallelHyperParams.from_hparams(demo_hparams())
    targets = find_targets(model, hparams.inner_params)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Texts(model, tokenizer, trunk=CachedTrunk(model, targets)), targets, hparams
