"""What the EasyEdit release 0.0.1.dev0 needs to run on today's transformers and without CUDA.

It names three functions that have left `transformers.modeling_utils`, and writes `cuda:` before
every device. Nothing here is used with today's EasyEdit.
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
    """Give `transformers.modeling_utils` the names again, so that the release can be imported."""
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
    """While the context lasts, `cuda:` before a device that is no CUDA device is taken away.

    `cuda:cpu` (what the release makes of `device: cpu`) means the CPU; `cuda:0` means CUDA where
    there is one, else this machine's accelerator of that number, else the CPU.
    """
    with _Redirected():
        yield


class _Redirected(TorchFunctionMode):
    """Rewrites device arguments of the torch functions called under it, in this thread only."""

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
