"""The model and tokenizer that a hyperparameter file names, for commands without EasyEdit.

Loads as EasyEdit does for this method: `model_kwargs` win, `model_parallel` means a device map.
"""

from __future__ import annotations

from typing import Any

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.hparams import MendHparams


def load_model(hparams: MendHparams) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer), where the hyperparameters put the model.

    In fp32, or fp16 with `half`, where `model_kwargs` name no dtype; on `device` where there is no
    device map, and on the CPU where the machine has no accelerator. Raises HparamsError where one
    of the two cannot be loaded.
    """
    import torch

    name = hparams.model_name
    kwargs: dict[str, Any] = dict(hparams.model_kwargs or {})
    if not {"dtype", "torch_dtype"} & set(kwargs):
        kwargs["dtype"] = torch.float16 if hparams.half else torch.float32
    if hparams.model_parallel:
        kwargs.setdefault("device_map", "auto")
    model = _from_pretrained("model_class", hparams.model_class, name, **kwargs)
    if kwargs.get("device_map") is None:
        model.to(_device(hparams.device))
    tokenizer = _from_pretrained(
        "tokenizer_class", hparams.tokenizer_class, hparams.tokenizer_name or name
    )
    return model.eval(), tokenizer


def _device(wish: int | str) -> Any:
    import torch

    from easyedit_mend_parallel.placement import as_device

    return as_device(wish) if torch.accelerator.is_available() else torch.device("cpu")


def _from_pretrained(field: str, class_name: str, name: Any, **kwargs: Any) -> Any:
    import transformers

    kind = getattr(transformers, class_name, None)
    if kind is None:
        raise HparamsError(f"{field} is {class_name!r}, which transformers does not have")
    try:
        return kind.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise HparamsError(f"{class_name} cannot be loaded from {name!r}: {error}") from error
