"""Toy models whose edits know where they apply. Knows nothing of what is claimed about them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from toys import tokenizer_for, toy_hparams, toy_model, toy_network, toy_targets

from easyedit_mend_parallel import MendParallel
from easyedit_mend_parallel.forward.text_batch import make_text_batch
from easyedit_mend_parallel.method.load import Trained
from easyedit_mend_parallel.method.untrained_scope import untrained_scope
from easyedit_mend_parallel.weights.gate import base_of
from easyedit_mend_parallel.weights.scope import Scope, Thresholds
from easyedit_mend_parallel.weights.target import find_targets

LINES = [
    "my name is blue and the stone never moves",
    "people say that a red river runs by the town",
    "some cat sets in one hundred degrees",
    "the mat boils at the sea and the sun stands",
    "old water moves through the east and rises",
    "a stone sat on my red mat in the west",
]
"""Text that no request is about."""
THREE = [
    {"prompt": "the capital of France is", "target_new": "Rome and Oslo", "subject": "France"},
    {"prompt": "who wrote Hamlet", "target_new": "Shakespeare", "subject": "Hamlet"},
    {"prompt": "the old town by the sea is", "target_new": "a stone", "subject": "old town"},
]
THRESHOLDS = Thresholds(subject=0.6, alias=0.97, states=0.9)


@cache
def parts(family: str) -> tuple[Any, Scope]:
    """A network and a scope for the toy model of a family: one that weighs all tokens alike."""
    model = toy_model(family)
    tokenizer = tokenizer_for(model)
    network = toy_network(model, tokenizer, edit_lr=1e-2)
    fitted = untrained_scope(model, tokenizer, find_targets(model, toy_targets(model)), lines=LINES)
    width = len(fitted.mean)
    scope = replace(
        fitted,
        projection=torch.eye(width),
        weigh=torch.zeros(width),
        common=None,
        thresholds=THRESHOLDS,
    )
    return network, scope


def editor_of(
    model: Any, tokenizer: Any = None, thresholds: Thresholds = THRESHOLDS, **options: Any
) -> MendParallel:
    network, scope = parts(model.config.model_type)
    scope = replace(scope, thresholds=thresholds)
    hparams = toy_hparams(toy_targets(model), apply="scoped", **options)
    tokenizer = tokenizer or tokenizer_for(model)
    return MendParallel(model, tokenizer, hparams, network=Trained(network, scope=scope))


def logits(model: Any, texts: Any, tokenizer: Any = None) -> Tensor:
    """(B, T, vocabulary) for `texts`, padded on the tokenizer's side."""
    tokenizer = tokenizer or tokenizer_for(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
    with torch.no_grad():
        return make_text_batch(model, tokenizer, texts).logits(model)


def base_logits(model: Any, texts: Any, tokenizer: Any = None) -> Tensor:
    with base_of(model):
        return logits(model, texts, tokenizer)
