"""Makes the arguments with which a model is called, and refuses models that cannot be called.

Knows what a forward takes, also that of a wrapped model. Knows nothing of requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from easyedit_mend_parallel.errors import RequestError, TargetError
from easyedit_mend_parallel.weights.placement import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def called_with(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `model` for `inputs`, on the device of its token ids: without a cache, and,
    if its forward takes them, with positions that do not count padding.

    Raises RequestError for a batch with padding on the left if a wrapper does not pass
    `position_ids` to a model that takes them.
    """
    device = input_device(model)
    arguments: dict[str, Any] = {name: ids.to(device) for name, ids in inputs.items()}
    mask = arguments["attention_mask"]
    if takes(model, "position_ids"):
        # Left out, some models (GPT-2) count padding as positions, and a prompt gives other
        # logits in a padded batch than alone.
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    elif not bool(mask[:, 0].all()):
        _refuse_hidden_positions(model)
    if takes(model, "use_cache"):
        arguments["use_cache"] = False
    return arguments


def refuse_uncallable(model: nn.Module) -> None:
    """Raise TargetError for an object that is not the transformers model itself, and for weights
    through which torch cannot compute a gradient."""
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise TargetError(
            "this is the wrapper that torch.compile returns: give the model in it "
            "(model._orig_mod). The wrapper has the edits too"
        )
    if not hasattr(model, "config"):
        inner = _wrapped(model)
        inside = "" if inner is None else f", such as the {type(inner).__name__} inside it"
        raise TargetError(
            f"{kind} is no transformers model: it has no config. Give the model itself{inside} "
            "(of DataParallel and DistributedDataParallel: model.module)"
        )
    inner = model if _wrapped(model) is None else _wrapped(model)
    main = getattr(inner, "main_input_name", "input_ids")
    if main != "input_ids" and not takes(model, "input_ids"):
        raise TargetError(
            f"{type(inner).__name__} reads {main} and no text, and a request is text: only models "
            "that read token ids can be edited"
        )
    try:
        model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        raise TargetError(
            f"{kind} has no input embeddings (get_input_embeddings), so it is no language model: "
            "give the language model inside it"
        ) from None
    frozen = [name for name, weight in model.named_parameters() if weight.is_inference()]
    if frozen:
        raise TargetError(
            f"{frozen[0]} was made inside torch.inference_mode(), and torch gives no gradient "
            "through such a weight: load the model outside of it (using it there later is fine)"
        )


def takes(model: nn.Module, argument: str) -> bool:
    """Whether `model` can be called with `argument`.

    Asks the class's own forward (accelerate wraps the instance's). A wrapper (PEFT's, a
    compiled model) that passes its arguments on can be called with those of the model in it.
    """
    forward = type(model).forward
    parameters = inspect.signature(forward).parameters
    if argument in parameters:
        return True
    hands_on = forward is nn.Module.forward or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    inner = _wrapped(model) if hands_on else None
    return inner is not None and takes(inner, argument)


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The transformers model inside a wrapper; None for a transformers model itself."""
    from transformers import PreTrainedModel  # slow to import, and needed only here

    if isinstance(model, PreTrainedModel):
        return None
    return next((one for one in model.modules() if isinstance(one, PreTrainedModel)), None)


def _refuse_hidden_positions(model: nn.Module) -> None:
    inner = _wrapped(model)
    if inner is not None and takes(inner, "position_ids"):
        raise RequestError(
            f"{type(model).__name__}'s forward cannot hand position_ids to the "
            f"{type(inner).__name__} in it, so a batch that is padded on the left would give "
            "other predictions than its requests alone: set tokenizer.padding_side = 'right', "
            "or give the wrapper's forward a **kwargs that it hands on"
        )
