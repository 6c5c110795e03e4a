"""Makes the batch of one request whose prompt is given as ready inputs of the model, as processors
make them: token ids, and images as tensors. Does not know what the other inputs are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.forward.batch import IGNORED, Batch, without_special_tokens
from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.tokenizing import AUTO, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("token_type_ids", "mm_token_type_ids")
"""Inputs that say of each token what it is; of a token of text they say 0."""


def ready_batch(
    model: PreTrainedModel,
    tokenizer: Any,
    request: Request,
    inputs: Mapping[str, Any],
    *,
    special_tokens_in_labels: bool = True,
) -> Batch:
    """The batch of `request`, whose prompt is in `inputs`: `input_ids` (1, T), and the rest.

    The target's tokens, as they follow the text `request.prompt`, are put after the ids of
    `inputs`. Inputs that do not have one entry for each token (images) are passed on as they are.

    Raises RequestError for inputs that cannot be a prompt.
    """
    if model.config.is_encoder_decoder:
        raise RequestError("inputs: only decoder-only models are edited with ready inputs")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        raise RequestError(
            "inputs: input_ids have to be a tensor (1, T), the tokens of one prompt: call the "
            "processor with one text, and return_tensors='pt'"
        )
    if "position_ids" in inputs:
        raise RequestError("inputs: leave position_ids out; the model makes them")
    space = request.target_space or AUTO
    text = tokenized(model, tokenizer, request.prompt, request.target_text, space)
    target = torch.tensor([text.labels], device=ids.device)
    given = {name: _longer(name, value, ids, target) for name, value in inputs.items()}
    given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    if not bool(given["attention_mask"].all()):
        raise RequestError("inputs: the attention_mask leaves tokens out; give them no padding")
    labels = torch.full((1, ids.shape[1] + target.shape[1]), IGNORED)
    labels[:, ids.shape[1] - 1 : -1] = target.cpu()
    if not special_tokens_in_labels:
        labels = without_special_tokens(labels, tokenizer.all_special_ids)
    arguments = called_with(model, given)
    arguments.pop("position_ids", None)  # an image's tokens may share positions
    return Batch(arguments, labels, torch.arange(1))


def _longer(name: str, value: Any, ids: Tensor, target: Tensor) -> Any:
    """An input with the entries of the target's tokens, if it has one for each of the prompt's."""
    if not isinstance(value, Tensor) or value.shape != ids.shape:
        return value
    if name == "input_ids":
        return torch.cat([value, target], 1)
    if name == "attention_mask":
        return torch.cat([value, torch.ones_like(target).to(value)], 1)
    if name in KINDS:
        return torch.cat([value, torch.zeros_like(target).to(value)], 1)
    raise RequestError(f"inputs: {name!r} has an entry for each token, and is not known here")
