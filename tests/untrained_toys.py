"""Editors of toy models that edit without a trained hypernetwork, and what tests ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toys import (
    REQUESTS,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_targets,
)

from easyedit_mend_parallel import (
    MendParallel,
    save_archive,
)
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.calibration import calibrate
from easyedit_mend_parallel.weights.target import find_targets

ONE = {"prompt": "the sun rises in the", "target_new": "Paris"}
TWO = [ONE, {"prompt": "my name is", "target_new": "stone"}]
NEAR = [
    {"prompt": "my name is", "target_new": "stone"},
    {"prompt": "old name is", "target_new": "mat"},
]
"""Alike enough that their updates disturb each other."""
LIMIT = 2.0
"""Toy models are narrow, and need long steps."""


def editor(family: str = "llama", model: Any = None, **options: Any) -> MendParallel:
    model = model or toy_model(family)
    values = {"untrained": True, "max_relative_norm": LIMIT, "step_margin": 1.0} | options
    return MendParallel(model, tokenizer_for(model), toy_hparams(toy_targets(model), **values))


def calibrated(path: Path, model: Any, **options: Any) -> str:
    """An archive of statistics for `model`, on disk."""
    targets = find_targets(model, toy_targets(model))
    hparams = toy_hparams(toy_targets(model), **options)
    network = Hypernetwork(targets, hparams.network_config())
    calibrate(model, targets, network, [make_batch(model, tokenizer_for(model), asked(REQUESTS))])
    return str(save_archive(path / "calibrated.safetensors", network, untrained=True))


def asked(requests: Any) -> Any:
    return as_requests(requests)


def answers(one: MendParallel, requests: Any) -> list[bool]:
    yes = make_batch(
        one.model, one.tokenizer, asked(requests), special_tokens_in_labels=False
    ).answered(one.model)
    found: list[bool] = yes.tolist()
    return found
