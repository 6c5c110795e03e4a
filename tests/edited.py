"""Toy models that were edited, for the tests of saved edits. Knows nothing of what is claimed."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from toys import tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets

from easyedit_mend_parallel import EditResult, MendParallel
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork

FACTS = [
    {"prompt": "the capital of France is", "target_new": "Rome"},
    {"prompt": "who wrote Hamlet", "target_new": "a stone"},
    {"prompt": "the sun rises in the", "target_new": "west and sets in the east"},
]


@cache
def _network(family: str, edit_lr: float) -> Hypernetwork:
    plain = toy_model(family)
    return toy_network(plain, tokenizer_for(plain), edit_lr=edit_lr)


def editor_of(
    model: Any, apply: str = "weight", *, edit_lr: float = 1e-3, **options: Any
) -> MendParallel:
    """An editor of a toy model; the same network for every model of a family."""
    hparams = toy_hparams(toy_targets(model), apply=apply, **options)
    network = _network(model.config.model_type, edit_lr)
    return MendParallel(model, tokenizer_for(model), hparams, network=network)


def edited(family: str = "llama", requests: Any = FACTS, **options: Any) -> tuple[Any, EditResult]:
    """A toy model with one edit in it, and what the edit did."""
    model = toy_model(family, **options)
    return model, editor_of(model).edit(requests)


def logits_on_facts(model: Any, call: Any = None) -> torch.Tensor:
    """What `model` (or `call`, a wrapper of it) predicts for `FACTS`, on the CPU."""
    with torch.no_grad():
        batch = make_batch(model, tokenizer_for(model), as_requests(FACTS))
        return batch.logits(model if call is None else call).cpu()
