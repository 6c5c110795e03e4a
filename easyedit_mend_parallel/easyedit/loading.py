"""Makes EasyEdit load a model for our method with the user's `model_kwargs`, and leave it in place.

EasyEdit hard-codes the device map and the dtype, and calls `.to()` on the loaded model. These are
context managers around its loading; when they end, everything is as before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.placement import is_dispatched

log = logging.getLogger(__name__)


@contextmanager
def from_pretrained_with(model_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """In this thread, while the context lasts, models are also loaded with `model_kwargs`.

    They override the caller's arguments. A model that is loaded with a device map stays where the
    map put it until the context ends: `.to()` on it does nothing. Raises PlacementError if the
    device map does not cover the model.
    """
    held: list[nn.Module] = []

    def loaded(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if "dtype" in model_kwargs or "torch_dtype" in model_kwargs:
            kwargs.pop("dtype", None)
            kwargs.pop("torch_dtype", None)
        kwargs.update(model_kwargs)
        device_map = kwargs.get("device_map")
        try:
            answer = load(*args, **kwargs)
        except ValueError as error:
            if isinstance(device_map, Mapping) and "device_map" in str(error):
                raise PlacementError(f"device_map does not cover the model: {error}") from error
            raise
        if device_map is not None:
            model = answer[0] if isinstance(answer, tuple) else answer
            _refuse_uncovered(model, device_map)
            _hold(model)
            held.append(model)
        return answer

    try:
        with _interposed.loading_by(loaded):
            yield
    finally:
        for model in held:
            _release(model)


class _Interposed:
    """Replaces transformers' `from_pretrained` while a thread needs it. Other threads load as
    usual."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._original: Any = None
        self._of_thread = threading.local()

    @contextmanager
    def loading_by(self, loaded: Callable[..., Any]) -> Iterator[None]:
        outer = getattr(self._of_thread, "loaded", None)
        self._enter()
        self._of_thread.loaded = loaded
        try:
            yield
        finally:
            self._of_thread.loaded = outer
            self._leave()

    def _enter(self) -> None:
        from transformers import PreTrainedModel

        with self._lock:
            self._asking += 1
            if self._asking > 1:
                return
            original = self._original = PreTrainedModel.__dict__["from_pretrained"]

            def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
                load = original.__get__(None, cls)
                loaded = getattr(self._of_thread, "loaded", None)
                return load(*args, **kwargs) if loaded is None else loaded(load, *args, **kwargs)

            PreTrainedModel.from_pretrained = classmethod(from_pretrained)

    def _leave(self) -> None:
        from transformers import PreTrainedModel

        with self._lock:
            self._asking -= 1
            if not self._asking:
                PreTrainedModel.from_pretrained = self._original


_interposed = _Interposed()


@contextmanager
def held_in_place(model: nn.Module, anyway: bool = False) -> Iterator[None]:
    """While the context lasts, `.to()` on a dispatched model (with `anyway`: any) does nothing."""
    if (not anyway and not is_dispatched(model)) or _HELD in model.__dict__:
        yield
        return
    _hold(model)
    try:
        yield
    finally:
        _release(model)


class Assigned:
    """Holds in place what is assigned to an editor's `model` while this thread constructs it.

    A subclass of EasyEdit's editor, or a stand-in for transformers' classes, may get a dispatched
    model from anywhere; EasyEdit calls `.to()` on it right after the assignment.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def join(self, editor_class: Any) -> None:
        """Watch assignments to `editor_class`'s objects. Outside `held` they are ordinary ones."""
        assign = editor_class.__setattr__

        def __setattr__(editor: Any, name: str, value: Any) -> None:
            held = getattr(self._of_thread, "held", None)
            if held is not None and name == "model" and isinstance(value, nn.Module):
                held.enter_context(held_in_place(value))
            assign(editor, name, value)

        editor_class.__setattr__ = __setattr__

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the context lasts, dispatched models that are assigned stay where they are."""
        outer = getattr(self._of_thread, "held", None)
        with ExitStack() as stack:
            self._of_thread.held = stack
            try:
                yield
            finally:
                self._of_thread.held = outer


_HELD = "_easyedit_mend_parallel_to"


def _hold(model: nn.Module) -> None:
    def stay(*_args: Any, **_kwargs: Any) -> nn.Module:
        log.info("the model stays where its device map put it")
        return model

    # accelerate sets its own `to` on dispatched models; _release restores it.
    model.__dict__[_HELD] = model.__dict__.get("to")
    model.__dict__["to"] = stay


def _release(model: nn.Module) -> None:
    before = model.__dict__.pop(_HELD)
    if before is None:
        del model.__dict__["to"]
    else:
        model.__dict__["to"] = before


def _refuse_uncovered(model: nn.Module, device_map: Any) -> None:
    """Raise PlacementError for a map without an entry for some weight: it would have no values."""
    if not isinstance(device_map, Mapping) or "" in device_map:
        return
    for name, _ in model.named_parameters():
        if not any(name == place or name.startswith(place + ".") for place in device_map):
            raise PlacementError(
                f"device_map has no entry for {name}; its entries are "
                f"{', '.join(map(str, device_map))}: add one for it or for a module around it"
            )
