"""Walks to a module by its name. Knows nothing of what the modules are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def modules_around(model: nn.Module, layer_name: str) -> Iterator[nn.Module]:
    """The modules in whose parameters those of the layer are, outermost first: the model, the
    modules on the way, and the layer."""
    module = model
    yield module
    for step in layer_name.split(".") if layer_name else []:
        module = module.get_submodule(step)
        yield module
