"""Keeps the processes of a run in step where they share one base model (FSDP2, ZeRO-3): each has
texts of its own, and all make the same forward passes.

Refuses base models and launchers with which they could not. Knows no losses and no optimizer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.forward.batch import batch_of
from easyedit_mend_parallel.forward.layout import ask_beforehand
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.weights.engines import is_gathered, refuse_engines
from easyedit_mend_parallel.weights.sharding import tensor_parallel_name
from easyedit_mend_parallel.weights.target import Target

SPLIT_IT = "split it by FSDP2 (model_kwargs: {distributed_config: {fsdp_size: N}}, for N processes)"
LAUNCHERS = {
    "ACCELERATE_USE_FSDP": "FSDP (use_fsdp)",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed (use_deepspeed)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM (use_megatron_lm)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
"""Variables that `accelerate launch` sets, and what its configuration asks for with each."""


def refuse_untrainable(model: nn.Module) -> None:
    """Raise TrainingError for a base model that tensor parallelism splits between processes, and
    PlacementError for one that an engine splits in a way that this package does not know."""
    refuse_engines(model)
    name = tensor_parallel_name(model)
    if name is not None:
        raise TrainingError(
            f"{name} is split by tensor parallelism, which needs the same texts in each process, "
            "and each training process has texts of its own: load the model with a device_map, "
            f"whole in each process, or {SPLIT_IT}"
        )


def refuse_launcher(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise TrainingError for a configuration of accelerate that asks for an engine, unless it is
    FSDP2 and splits `model` already."""
    asked = [what for name, what in LAUNCHERS.items() if os.environ.get(name, "").lower() == "true"]
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None or (asked and (asked != ["FSDP (use_fsdp)"] or not is_gathered(model))):
        raise TrainingError(
            f"accelerate's configuration asks for {asked[0] if asked else 'DeepSpeed'}, which does "
            "not split the base model of this trainer: leave it out of that configuration. If the "
            f"model is too large for one process, {SPLIT_IT}"
        )


def ask_in_step(texts: Texts, targets: Sequence[Target], text: Text) -> None:
    """Let processes that share one base model ask it together what it would be asked by whichever
    of them first has a padded batch. Each of them passes the same `text`.

    Does nothing for a model of which each process has a whole copy. Raises TargetError for a model
    whose predictions depend on padding.
    """
    if not is_gathered(texts.model):
        return
    plain = texts.tokenized(text)
    longer = replace(plain, ids=plain.ids[:1] + plain.ids)
    model: Any = texts.model
    ask_beforehand(model, targets, batch_of(model, texts.tokenizer, [plain, longer]))
