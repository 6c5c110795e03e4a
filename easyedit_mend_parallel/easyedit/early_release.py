"""Makes the EasyEdit release 0.0.1.dev0 run with current transformers and without CUDA.

The release imports three functions that were removed from `transformers.modeling_utils`, and writes
`cuda:` before every device. Nothing here is used with EasyEdit's repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from easyedit_mend_parallel.errors import MendParallelError

GONE = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
"""Names that its Q-Former imports from `transformers.modeling_utils`; MEND uses none of them."""


def add_names_that_are_gone(modeling_utils: ModuleType) -> None:
    """Add the names to `transformers.modeling_utils`, so that the release can be imported."""
    from transformers import pytorch_utils

    for name in GONE:
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name, _missing(name)))


def _missing(name: str) -> Callable[..., Any]:
    def missing(*_args: Any, **_kwargs: Any) -> Any:
        raise MendParallelError(
            f"transformers no longer has {name}, which EasyEdit 0.0.1.dev0 uses for its "
            "multimodal models; use EasyEdit's repository for those"
        )

    return missing


@contextmanager
def cuda_elsewhere() -> Iterator[None]:
    """While the context lasts, `cuda:` is removed before devices that are not CUDA devices.

    `cuda:cpu` (which the release makes from `device: cpu`) means the CPU. `cuda:0` means CUDA if
    there is any, else this machine's accelerator with that number, else the CPU.
    """
    with _Redirected():
        yield


class _Redirected(TorchFunctionMode):
    """Rewrites device arguments of torch functions that are called under it, in this thread."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {name: _redirect(value) for name, value in (kwargs or {}).items()}
        return func(*map(_redirect, args), **kwargs)


def _redirect(value: Any) -> Any:
    if isinstance(value, torch.device):
        if value.type != "cuda" or torch.cuda.is_available():
            return value
        value = str(value)
    if not isinstance(value, str) or not value.startswith("cuda"):
        return value
    place = value.removeprefix("cuda").removeprefix(":") or "0"
    if not place.isdigit():
        return torch.device(place)
    if torch.cuda.is_available():
        return value
    accelerator = torch.accelerator.current_accelerator()
    return torch.device(accelerator.type, int(place)) if accelerator else torch.device("cpu")
