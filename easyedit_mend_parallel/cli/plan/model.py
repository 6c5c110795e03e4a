"""Builds a model without loading it: on the meta device, from its `config.json`, in the dtype and
with the device map that loading would give it.

Knows `from_pretrained`'s arguments, and neither targets nor hypernetworks. Fetches nothing from a
network and runs no code of the model's repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import CustomDtype, compute_module_sizes
from torch import nn

from easyedit_mend_parallel.errors import HparamsError, suggestion

DEFAULT_DTYPE = torch.float32
"""The default dtype of EasyEdit's loading."""
KNOWN_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "distributed_config",
    "dtype",
    "local_files_only",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "tp_plan",
    "tp_size",
    "trust_remote_code",
    "use_safetensors",
    "variant",
)
"""Common arguments of `from_pretrained`, for suggestions if one is misspelt."""
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Sketch:
    """A model on the meta device and how it would be loaded.

    `dtypes` {parameter that quantization packs: its packed dtype}. `bytes_of` {module or parameter:
    its size} (`""`: the whole model); a tied weight counts once in a module. `safetensors`: whether
    its weights are in safetensors files; None if there are no weights.
    """

    model: nn.Module
    dtype: torch.dtype
    dtypes: Mapping[str, Any]
    bytes_of: Mapping[str, int]
    safetensors: bool | None


def sketch(model_name: Any, model_class: str, model_kwargs: Mapping[str, Any]) -> Sketch:
    """The model called `model_name` (a directory, or a hub id that is in the local cache).

    Raises HparamsError if it is missing, if transformers does not have its class, or if it cannot
    be built as `model_class`.
    """
    import transformers

    if not isinstance(model_name, str):
        raise HparamsError(
            f"model_name is {model_name!r}; to check it, it must be a directory or a hub id"
        )
    where = {
        name: model_kwargs[name]
        for name in ("revision", "subfolder", "cache_dir")
        if name in model_kwargs
    }
    try:
        config = transformers.AutoConfig.from_pretrained(
            model_name, local_files_only=True, trust_remote_code=False, **where
        )
    except (OSError, ValueError) as error:
        raise HparamsError(
            f"model_name is {model_name!r}: there is no configuration that can be read in such a "
            "directory or in the hub's cache on this machine. Correct the path, or download the "
            f"model first ({type(error).__name__}: {_first_line(error)})"
        ) from error
    factory = getattr(transformers, str(model_class), None)
    if factory is None or not hasattr(factory, "from_pretrained"):
        raise HparamsError(
            f"model_class is {model_class!r}, which transformers does not have"
            + suggestion(model_class, _model_classes(transformers))
        )
    dtype = dtype_of(model_kwargs, config)
    with init_empty_weights():
        try:
            model = (
                factory.from_config(config, trust_remote_code=False)
                if hasattr(factory, "from_config")
                else factory(config)
            )
        except Exception as error:  # a class may raise anything for another configuration
            raise HparamsError(
                f"{model_name} is a {config.model_type}, which cannot be built as {model_class}: "
                f"set model_class to one of {', '.join(config.architectures or ['its own class'])} "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error
    model = model.to(dtype)
    model.tie_weights()
    packed = _packed_dtypes(model, config, model_kwargs)
    sizes = dict(compute_module_sizes(model, special_dtypes=packed))
    first_name = {id(weight): name for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters(remove_duplicate=False):
        sizes[name] = sizes[first_name[id(weight)]]
    return Sketch(
        model=model,
        dtype=dtype,
        dtypes=packed,
        bytes_of=sizes,
        safetensors=_has_safetensors(model_name, where),
    )


def misspelt(model_kwargs: Mapping[str, Any]) -> list[str]:
    """A sentence for each argument that looks like a misspelt argument of `from_pretrained`."""
    return [
        f"model_kwargs: {name!r} is no argument of from_pretrained" + meant
        for name in model_kwargs
        if name not in KNOWN_ARGUMENTS and (meant := suggestion(name, KNOWN_ARGUMENTS))
    ]


def dtype_of(model_kwargs: Mapping[str, Any], config: Any) -> torch.dtype:
    """The dtype argument of `from_pretrained`. Raises HparamsError if it is not a dtype."""
    asked = model_kwargs.get("dtype", model_kwargs.get("torch_dtype"))
    if asked is None:
        return DEFAULT_DTYPE
    if asked == "auto":
        asked = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        return asked if isinstance(asked, torch.dtype) else DEFAULT_DTYPE
    found = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if not isinstance(found, torch.dtype):
        raise HparamsError(
            f"model_kwargs: dtype is {asked!r}, which torch does not have; write float32, "
            "bfloat16, float16 or auto"
        )
    return found


def _packed_dtypes(
    model: nn.Module, config: Any, model_kwargs: Mapping[str, Any]
) -> dict[str, torch.dtype | CustomDtype]:
    """{parameter: its packed dtype}; empty if the model is not quantized.

    Quantizers skip the output embeddings and the modules that their configuration names.
    """
    asked = model_kwargs.get("quantization_config", getattr(config, "quantization_config", None))
    if asked is None:
        return {}
    options = asked if isinstance(asked, Mapping) else vars(asked)
    four = any("4bit" in name and value is True for name, value in options.items())
    packed = CustomDtype.INT4 if four or options.get("bits") == 4 else torch.int8
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    skipped = (*(options.get("llm_int8_skip_modules") or ()),)
    return {
        f"{name}.weight": packed
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and not any(part in name for part in skipped)
    }


def _has_safetensors(model_name: str, where: Mapping[str, Any]) -> bool | None:
    from transformers.utils import cached_file

    for name in WEIGHT_FILES:
        file = cached_file(
            model_name,
            name,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **where,
        )
        if file is not None:
            return "safetensors" in name
    return None


def _model_classes(transformers: Any) -> list[str]:
    return [name for name in dir(transformers) if "For" in name or name.startswith("AutoModel")]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
