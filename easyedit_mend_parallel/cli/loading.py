"""Loads a model and its tokenizer with transformers, as hyperparameters say.

Knows the names of hyperparameters and of transformers' classes, and nothing of editing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from easyedit_mend_parallel.cli.hub import TOKENIZER_FILES, options_for
from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.weights.placement import as_device
from easyedit_mend_parallel.weights.whole import is_distributed

UNUSED = ("torchvision", "timm")
"""Packages that transformers imports where they are installed; no text model needs them."""


def load_model(hparams: MendHparams, device: torch.device | None = None) -> tuple[Any, Any]:
    """Load (model in eval mode, tokenizer) of `hparams.model_name`, which may also be such a pair.

    `model_kwargs` are passed to `from_pretrained`. If they have no device map, `model_parallel`
    means `device_map="auto"`. Without a map, the model goes to `device`; by default to
    `hparams.device` if this machine has an accelerator, else to the CPU. A `distributed_config`
    splits it over the processes, and each part stays on the device of its process.

    Raises HparamsError for a class that transformers does not have, or for a model or a tokenizer
    that cannot be loaded; without a network at once.
    """
    if isinstance(hparams.model_name, (tuple, list)):
        model, tokenizer = hparams.model_name
        return model.eval(), tokenizer
    options = dict(hparams.model_kwargs or {})
    if hparams.model_parallel and "distributed_config" not in options:
        options.setdefault("device_map", "auto")
    if hparams.half:
        options.setdefault("dtype", torch.float16)
    try:
        model_class = getattr(transformers, hparams.model_class)
        tokenizer_class = getattr(transformers, hparams.tokenizer_class)
    except AttributeError as error:
        raise HparamsError(f"{error}: see model_class and tokenizer_class") from error
    # The tokenizer first: it takes a moment, and the model may take minutes.
    field = "tokenizer_name" if hparams.tokenizer_name else "model_name"
    tokenizer = _loaded(
        tokenizer_class, field, hparams.tokenizer_name or hparams.model_name, TOKENIZER_FILES, {}
    )
    model = _loaded(model_class, "model_name", hparams.model_name, ("config.json",), options)
    if "device_map" not in options and not any(map(is_distributed, model.parameters())):
        model.to(device if device is not None else _own_device(hparams))
    return model.eval(), tokenizer


def _loaded(
    loader: Any, field: str, name: Any, known: tuple[str, ...], options: dict[str, Any]
) -> Any:
    """What `loader` loads for `name`, the value of `field`. Raises HparamsError."""
    try:
        with _quiet():
            return loader.from_pretrained(name, **options_for(field, name, known), **options)
    except (OSError, ValueError, RuntimeError) as error:
        if "distributed_config" in options:
            raise HparamsError(
                f"{field} {name!r} cannot be split as distributed_config says: {error}. Start as "
                "many processes as it names (torchrun --nproc-per-node N), or change it"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise HparamsError(f"{field} {name!r} cannot be loaded: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """While the context lasts, packages that transformers imports, and no edit uses, do not warn of
    what they miss on this machine."""
    with warnings.catch_warnings():
        for package in UNUSED:
            warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
        yield


def _own_device(hparams: MendHparams) -> torch.device:
    accelerated = torch.accelerator.is_available()
    return as_device(hparams.device) if accelerated else torch.device("cpu")
