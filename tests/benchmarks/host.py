"""EasyEdit's own MEND as a contestant: its executor on a model in one place, as users call it.

Knows which clone of EasyEdit it was given, or else takes the installed one; a process has one.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import Shape
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere


def import_host(clone: Path | None) -> Any:
    """EasyEdit's package: that of `clone`, or the installed one."""
    if clone is not None:
        sys.path.insert(0, str(clone))
    host = importlib.import_module("easyeditor")
    logging.disable(logging.WARNING)  # its messages are not what is measured
    return host


class HostMend:
    """EasyEdit's executor; `diagnostics=False` takes away what it measures besides the edit."""

    def __init__(
        self,
        host: Any,
        model: Any,
        tokenizer: Any,
        shape: Shape,
        archive: Path,
        *,
        diagnostics: bool = True,
    ) -> None:
        for name in shape.targets:
            model.get_parameter(name).requires_grad_(True)
        fields = shape.hparams().to_dict() | {"alg_name": "MEND", "alg": "MEND"}
        fields["archive"] = str(archive)
        known = host.MENDHyperParams.__dataclass_fields__
        self.hparams = host.MENDHyperParams(**{k: v for k, v in fields.items() if k in known})
        self.model, self.tokenizer = model, tokenizer
        executor = importlib.import_module("easyeditor.models.mend.mend_main")
        self.executor = executor.MendRewriteExecutor()
        with cuda_elsewhere():  # the early release writes `cuda:` before every device
            self.executor.init_model(model, tokenizer, self.hparams)
        self.shapes = {tuple(model.get_parameter(name).shape) for name in shape.targets}
        self.diagnostics = diagnostics

    def edit(self, requests: Sequence[Mapping[str, str]]) -> Callable[[], None]:
        """Edits the model; returns what takes the edit back, as its `BaseEditor` does."""
        skipped = nullcontext() if self.diagnostics else without_diagnostics(self.shapes)
        with cuda_elsewhere(), skipped:
            _, before = self.executor.apply_to_model(
                self.model,
                self.tokenizer,
                [dict(request) for request in requests],
                self.hparams,
                return_orig_weights=True,
                keep_original_weight=True,
            )

        def restore() -> None:
            with torch.no_grad():
                for name, weight in before.items():
                    self.model.get_parameter(name)[...] = weight

        return restore


@contextmanager
def without_diagnostics(shapes: set[tuple[int, ...]]) -> Iterator[None]:
    """EasyEdit compares each update with the true gradient: norms, deviations, a difference and a
    cosine of matrices of a weight's shape. While this lasts such an answer is 0, at no cost."""
    nothing = torch.zeros(())
    tensor, functional = torch.Tensor, torch.nn.functional
    kept = tensor.norm, tensor.std, tensor.__sub__, functional.cosine_similarity

    def skipping(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def skip(one: Tensor, *others: Any, **options: Any) -> Tensor:
            if tuple(one.shape) in shapes:
                return nothing
            return method(one, *others, **options)

        return skip

    tensor.norm, tensor.std = skipping(tensor.norm), skipping(tensor.std)  # type: ignore
    tensor.__sub__ = skipping(tensor.__sub__)  # type: ignore
    functional.cosine_similarity = lambda *_, **__: nothing  # type: ignore
    try:
        yield
    finally:
        tensor.norm, tensor.std, tensor.__sub__, functional.cosine_similarity = kept  # type: ignore
