"""What a model predicts: the logits in its output, and an error for a model that predicts no next
token. Asks the output and the config, never the model's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import TargetError

NO_HEAD = (
    "MEND edits what a model predicts as the next token: load the model with a language-model "
    "head (AutoModelForCausalLM, AutoModelForSeq2SeqLM)"
)


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """While the context lasts, an error of the model's forward that comes of what it was given is a
    TargetError, with the forward's own words."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError) as error:
        raise TargetError(
            f"{type(model).__name__} cannot be called with a text alone: {error}. A model that "
            "needs an image, sound or anything else besides token ids is not supported; give the "
            "language model inside it"
        ) from error
    except (RuntimeError, IndexError) as error:
        if _output_layer(model) is not None:
            raise
        raise TargetError(
            f"{type(model).__name__} has no output layer for tokens, and its forward fails with "
            f"{type(error).__name__} ({error}). {NO_HEAD}"
        ) from error


def logits_in(model: nn.Module, output: Any) -> Tensor:
    """The logits in the output of `model`'s forward: of an output object `logits`, of a tuple the
    first. Raises TargetError where there are none."""
    found = getattr(output, "logits", output[0] if isinstance(output, tuple) else None)
    if not isinstance(found, Tensor):
        has = ", ".join(output) if isinstance(output, dict) else type(output).__name__
        raise TargetError(f"{type(model).__name__} gives no logits, but {has}. {NO_HEAD}")
    return found


def refuse_other_logits(
    model: nn.Module, logits: Tensor, shapes: Sequence[tuple[int, ...]], highest: int
) -> None:
    """Raise TargetError where `logits` are not (B, T, vocabulary), with (B, T) one of `shapes` and
    a vocabulary that has the label `highest`."""
    name, shape = type(model).__name__, tuple(logits.shape)
    if len(shape) != 3 or all(shape[:2] != tuple(one) for one in shapes):
        raise TargetError(
            f"{name} gives logits of the shape {shape} for {shapes[0][0]} texts of {shapes[0][1]} "
            f"tokens, and not some for each token (a classifier, or a model with tokens of its "
            f"own before the text). {NO_HEAD}"
        )
    read: Any = getattr(model, "get_input_embeddings", lambda: None)()
    embeddings = getattr(read, "num_embeddings", None)
    other = _output_layer(model) is None and embeddings not in (None, shape[2])
    if highest >= shape[2] or other:
        raise TargetError(
            f"{name} has {shape[2]} logits for each token, and its tokenizer has more tokens. "
            f"{NO_HEAD}, and the tokenizer of that model"
        )


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """What the decoder of an encoder-decoder model reads for `labels` (B, T), of the same shape:
    a start token, and the labels up to the one before the last.

    Raises TargetError where the model does not say which token its decoder begins with.
    """
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    try:
        if make is not None:
            # a copy: FSMT's and ProphetNet's write the padding token over ignored labels
            made: Tensor = make(labels=labels.clone())
            return made
    except (ValueError, AttributeError) as error:
        raise TargetError(f"{type(model).__name__}'s decoder has no inputs: {error}") from error
    settings = (model.config, getattr(model, "generation_config", None))
    start, padding = (
        next((found for one in settings if (found := getattr(one, name, None)) is not None), None)
        for name in ("decoder_start_token_id", "pad_token_id")
    )
    if start is None or padding is None:
        raise TargetError(
            f"the config of {type(model).__name__} has no decoder_start_token_id or no "
            "pad_token_id, so nobody knows what its decoder reads first: set them"
        )
    before = labels[:, :-1].masked_fill(labels[:, :-1] < 0, padding)
    return torch.cat([torch.full_like(labels[:, :1], start), before], 1)


def _output_layer(model: nn.Module) -> nn.Module | None:
    found: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found
