"""Exports an edit as a LoRA adapter for `peft`: a target's keys and values become A and B.

Writes the files that peft reads, without importing peft. Knows no model.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from easyedit_mend_parallel.edits.saved import SavedEdit, refuse_scoped
from easyedit_mend_parallel.edits.squashing import of_true_rank
from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import new_folder

log = logging.getLogger(__name__)

PREFIX = "base_model.model."
"""peft's prefix of the base model's module names."""


def export_peft(edit: SavedEdit, folder: str | Path) -> Path:
    """Write the adapter to `folder`, which must be new or empty; whole or not at all.

    ΔW = valuesᵀ keys is a LoRA (Hu et al. 2021) with A = keys, B = valuesᵀ and a scale of 1; each
    target has the true rank of its update as rank (`rank_pattern`), in fp32: rows that add nothing
    are dropped, with an error of at most 1e-6 (`of_true_rank`), which is logged. Use `squash` first
    to limit the rank further.

    For a model whose experts are one weight of three dimensions the adapter names parameters and
    not modules, which peft reads from version 0.17 on. Experts of one stack get one rank, the
    largest that one of them needs, and the others zeros; peft has to know which way round a stack
    is stored (tested: 0.21).

    Raises EditError for an edit that was written into a tied weight (an adapter changes only one of
    the two layers), and for an edit that adds nothing.
    """
    refuse_scoped(edit, "a LoRA adapter")
    if edit.about.get("hparams", {}).get("apply", "weight") == "weight":
        _refuse_tied(edit)
    rows, edit = edit.rows, of_true_rank(edit)
    if edit.rows < rows:
        dropped = max(edit.about["squashed"]["errors"].values())
        log.info("rank %d instead of %d, with an error of %.0e", edit.rows, rows, dropped)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, update in edit.updates.items():
        layer = edit.targets[name].layer_name
        if len(update.keys) and edit.targets[name].expert is None:
            ranks[layer] = len(update.keys)
            tensors[f"{PREFIX}{layer}.lora_A.weight"] = update.keys.contiguous()
            tensors[f"{PREFIX}{layer}.lora_B.weight"] = update.values.T.contiguous()
    of_stacks, in_stacks = _stacked(edit)
    if not ranks and not of_stacks:
        raise EditError(f"{edit.source} adds nothing to any weight: there is no adapter to write")
    base = edit.about["base"]["model"]
    # Where a family's experts are one weight, peft takes a module that is named like an expert's
    # layer (down_proj) for that weight, wherever it is. Parameters it takes by their names.
    in_out = any(t.transposed and t.expert is None for t in edit.targets.values())
    stacked = base.get("stacked", False) and not in_out
    modules = [] if stacked else list(ranks)
    if stacked:
        ranks = {f"{layer}.weight": rank for layer, rank in ranks.items()} | of_stacks
        tensors |= in_stacks
    elif of_stacks:
        raise EditError(
            "the edit has experts of a stack and layers that are stored in × out, for which peft "
            "has no adapter together: export the delta, or save the edited model"
        )
    highest = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if base["encoder_decoder"] else "CAUSAL_LM",
        "base_model_name_or_path": base["id"] or None,
        "target_modules": modules,
        **({"target_parameters": list(ranks)} if stacked else {}),
        "r": highest,
        "lora_alpha": highest,  # the scale is alpha / rank; B already contains the rate
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "fan_in_fan_out": in_out,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Path(folder)


def _stacked(edit: SavedEdit) -> tuple[dict[str, int], dict[str, Tensor]]:
    """{stack: its rank} and {name: tensor} of the experts in `edit`.

    peft's A has the experts one below the other (E · r, in), its B their columns in turn
    (out, r · E). Of two stacks in one layer, each is wrapped in the adapter of the next.
    """
    of: dict[str, list[str]] = {}
    for name, target in edit.targets.items():
        if target.expert is not None and len(edit.updates[name].keys):
            of.setdefault(target.parameter_name, []).append(name)
    weights = edit.about["base"]["weights"]
    ranks, tensors = {}, {}
    for stack, names in of.items():
        layer, about = edit.targets[names[0]].layer_name, weights[names[0]]["stack"]
        rank = ranks[stack] = max(len(edit.updates[name].keys) for name in names)
        first = edit.targets[names[0]]
        down = torch.zeros(about["experts"], rank, first.in_features)
        up = torch.zeros(first.out_features, rank, about["experts"])
        for name in names:
            update, expert = edit.updates[name], edit.targets[name].expert
            down[expert, : len(update.keys)] = update.keys
            up[:, : len(update.keys), expert] = update.values.T
        around = {
            one
            for one, others in of.items()
            if edit.targets[others[0]].layer_name == layer
            and weights[others[0]]["stack"]["place"] > about["place"]
        }
        path = f"{PREFIX}{layer}{'.base_layer' * len(around)}"
        tensors[f"{path}.lora_A.weight"] = down.flatten(0, 1).contiguous()
        tensors[f"{path}.lora_B.weight"] = up.flatten(1, 2).contiguous()
    return ranks, tensors


def _refuse_tied(edit: SavedEdit) -> None:
    for name, weight in edit.about["base"]["weights"].items():
        if name in edit.targets and weight["tied"]:
            raise EditError(
                f"{name} is one weight with {', '.join(weight['tied'])}, and the edit changed "
                "both layers: an adapter changes only one. Export the delta, or save the edited "
                "model"
            )
