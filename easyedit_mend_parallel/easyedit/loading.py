"""How EasyEdit loads a model for our method: with the user's `model_kwargs`, and left in place.

EasyEdit hard-wires the device map and the dtype, and calls `.to()` on what it loaded. Here are
context managers around its loading; once they end, everything is as it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.placement import is_dispatched

log = logging.getLogger(__name__)


@contextmanager
def from_pretrained_with(model_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """In this thread, while the context lasts, models are loaded with `model_kwargs` too.

    They win over what the caller passes. A model loaded with a device map stays where the map
    puts it until the context ends: `.to()` on it does nothing. Raises PlacementError where the
    device map does not cover the model.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    thread = threading.get_ident()
    held: list[nn.Module] = []

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        load = original.__get__(None, cls)
        if threading.get_ident() != thread:
            return load(*args, **kwargs)
        if "dtype" in model_kwargs or "torch_dtype" in model_kwargs:
            kwargs.pop("dtype", None)
            kwargs.pop("torch_dtype", None)
        kwargs.update(model_kwargs)
        try:
            loaded = load(*args, **kwargs)
        except ValueError as error:
            if isinstance(kwargs.get("device_map"), Mapping) and "device_map" in str(error):
                raise PlacementError(f"device_map does not cover the model: {error}") from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if kwargs.get("device_map") is not None:
            _refuse_uncovered(model, kwargs["device_map"])
            _hold(model)
            held.append(model)
        return loaded

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original
        for model in held:
            _release(model)


@contextmanager
def held_in_place(model: nn.Module) -> Iterator[None]:
    """While the context lasts `.to()` on a dispatched model does nothing."""
    if not is_dispatched(model):
        yield
        return
    _hold(model)
    try:
        yield
    finally:
        _release(model)


_HELD = "_easyedit_mend_parallel_to"


def _hold(model: nn.Module) -> None:
    def stay(*_args: Any, **_kwargs: Any) -> nn.Module:
        log.info("the model stays where its device map put it")
        return model

    # accelerate sets a `to` of its own on dispatched models, which is put back by _release.
    model.__dict__[_HELD] = model.__dict__.get("to")
    model.__dict__["to"] = stay


def _release(model: nn.Module) -> None:
    before = model.__dict__.pop(_HELD)
    if before is None:
        del model.__dict__["to"]
    else:
        model.__dict__["to"] = before


def _refuse_uncovered(model: nn.Module, device_map: Any) -> None:
    """A map that leaves a weight out leaves it without values, and loading may not notice."""
    if not isinstance(device_map, Mapping) or "" in device_map:
        return
    for name, _ in model.named_parameters():
        if not any(name == place or name.startswith(place + ".") for place in device_map):
            raise PlacementError(
                f"device_map has no entry for {name}; its entries are "
                f"{', '.join(map(str, device_map))}: add one for it or for a module around it"
            )
