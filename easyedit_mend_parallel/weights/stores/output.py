"""The store that writes nothing: a hook on the layer adds the updates to the layer's output.

Supports every kind of weight, also quantized and offloaded ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.compiled import drop_compiled_graphs, never_traced
from easyedit_mend_parallel.weights.routed import RoutedLayer, RoutedRows, Use
from easyedit_mend_parallel.weights.sharding import shard_of
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.references import LayerReference
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, output_with_update

log = logging.getLogger(__name__)

_EDITS = "_easyedit_mend_parallel_edits"
"""The attribute of a layer that holds its edits: {name of a weight in it: `OutputEdits`}."""
_NOTICE = "_easyedit_mend_parallel_notice"
"""The attribute of an edited model that holds the handle of its warning on saving."""


def offer(place: WeightPlace) -> OutputStore | None:
    """A store for any weight, with `apply: output`."""
    if place.apply != "output":
        return None
    return OutputStore(place.target, place.target.layer(place.model), place.model)


class OutputEdits:
    """The forward hook of an edited layer: adds all updates of the layer to its output. Of one
    expert's weight: adds them to each product with it.

    It runs before all other hooks of the layer, so that those see what an edited weight would give.
    It belongs to the layer: a deep copy of the model has a copy of it, with the edits made before
    the copy. `to()`, accelerate's hooks and a new dispatch do not change it.
    """

    def __init__(self, layer: nn.Module, target: Target) -> None:
        self._target = target
        self._state: tuple[list[tuple[object, LowRankUpdate]], LowRankUpdate | None] = ([], None)
        """The updates with their keys, and their sum: exchanged together, so that they agree."""
        self._handle: Any = None
        others, name = getattr(layer, _EDITS, {}), target.name_in_layer
        setattr(layer, _EDITS, {**others, name: self})
        self._hook(layer)

    @classmethod
    def on(cls, layer: nn.Module, name: str = "weight") -> OutputEdits | None:
        """The edits of the weight that has this `name` in `layer`; None if it has none."""
        edits: OutputEdits | None = getattr(layer, _EDITS, {}).get(name)
        return edits

    def __len__(self) -> int:
        return len(self._state[0])

    @property
    def total(self) -> LowRankUpdate:
        """The sum of all updates of the layer, as the rows of one update."""
        total = self._state[1]
        assert total is not None  # set with the first update
        return total

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """`output` with all updates added."""
        return self.added(Use(inputs[0], output))

    def added(self, use: Use) -> Tensor:
        """The output of a use of the weight with all updates added."""
        updates, total = self._state
        if total is None:
            return use.y
        if total.keys.device != use.y.device:
            total = self._keep(updates, use.y.device)
        return output_with_update(total, use.x, use.y)

    def _hook(self, layer: nn.Module) -> None:
        """Be called from now on; it may be so already."""
        if self._target.expert is not None:
            never_traced(RoutedLayer, "_enter", "_leave")
            never_traced(RoutedRows, "__torch_function__")
            routed = RoutedLayer.of(layer)
            if not routed.watches(self._target, self.added):
                routed.watch(layer, self._target, self.added, first=True)
        elif self._handle is None or self._handle.id not in layer._forward_hooks:
            self._handle = layer.register_forward_hook(self, prepend=True)

    def _unhook(self, layer: nn.Module) -> None:
        if self._target.expert is not None:
            RoutedLayer.of(layer).unwatch(layer, self._target, self.added)
        elif self._handle is not None:
            self._handle.remove()

    def position(self, key: object) -> int | None:
        """The index of the update of `key` among the others; None if the layer does not have it."""
        return next((place for place, (one, _) in enumerate(self._state[0]) if one is key), None)

    def hang(
        self, layer: nn.Module, key: object, update: LowRankUpdate, position: int | None = None
    ) -> None:
        """Add `update` to `layer` under `key`, as the last one or at index `position`."""
        if self.position(key) is None:
            earlier = self._state[0]
            position = len(earlier) if position is None else position
            updates = [*earlier[:position], (key, update), *earlier[position:]]
            self._keep(updates, update.keys.device)
        self._hook(layer)  # again, if `take` broke off

    def take(self, layer: nn.Module, key: object) -> None:
        """Remove the update of `key` from `layer`, and with the last update the hook."""
        left = [(one, update) for one, update in self._state[0] if one is not key]
        if not left:
            self._state = ([], None)
            self._unhook(layer)
            others = {name: one for name, one in getattr(layer, _EDITS).items() if one is not self}
            if others:
                setattr(layer, _EDITS, others)
            else:
                delattr(layer, _EDITS)
        elif len(left) < len(self):
            self._keep(left, left[0][1].keys.device)

    @torch.no_grad()
    def _keep(
        self, updates: list[tuple[object, LowRankUpdate]], device: torch.device
    ) -> LowRankUpdate:
        """Store the rows of `updates` as those of one update on `device`, and each as a view of it.

        One matrix product then serves all updates, and nothing is stored twice.
        """
        with torch.inference_mode(False):  # what is stored must also serve a backward pass
            total = LowRankUpdate.cat([update.to(device) for _, update in updates])
        counts = [len(update.keys) for _, update in updates]
        parts = zip(
            torch.split(total.keys, counts),
            torch.split(total.values, counts),
            torch.split(total.request, counts),
            strict=True,
        )
        views = [(key, LowRankUpdate(*part)) for (key, _), part in zip(updates, parts, strict=True)]
        self._state = (views, total)
        return total


class OutputStore(LayerReference):
    """The output of `layer`."""

    def __init__(self, target: Target, layer: nn.Module, model: nn.Module) -> None:
        super().__init__(target, layer, model)
        if shard_of(model, target) is not None:
            raise UpdateError(
                f"{target.name} is a shard of a tensor-parallel weight: its layer's output is a "
                "part, to which no update can be added yet. Set `apply: weight`"
            )

    def stage(self, update: LowRankUpdate) -> OutputStaged:
        """Prepare `update`. Makes no backup, since nothing will be overwritten."""
        return OutputStaged(self, update)

    def hang(self, key: object, update: LowRankUpdate, position: int | None) -> None:
        edits = self._edits() or OutputEdits(self.layer, self.target)
        edits.hang(self.layer, key, update, position)
        drop_compiled_graphs()
        model = self._model()
        if model is not None and not hasattr(model, _NOTICE):
            _give_notice(model)

    def position(self, key: object) -> int | None:
        """The index of the update of `key` among the others; None if the layer does not have it."""
        edits = self._edits()
        return None if edits is None else edits.position(key)

    def take(self, key: object) -> None:
        """Remove the update of `key`, if the layer has it."""
        edits = self._edits()
        if edits is None:
            return
        edits.take(self.layer, key)
        drop_compiled_graphs()
        model = self._model()
        if model is not None and hasattr(model, _NOTICE) and not edited_outputs(model):
            getattr(model, _NOTICE).remove()
            delattr(model, _NOTICE)

    def _edits(self) -> OutputEdits | None:
        return OutputEdits.on(self.layer, self.target.name_in_layer)


class OutputStaged:
    """An update for a layer's output. It can be removed without touching any other."""

    independent = True

    def __init__(self, store: OutputStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update: LowRankUpdate | None = update.detach()
        self._key = object()
        self._position: int | None = None

    @property
    def before(self) -> Tensor | None:
        """The weight itself, not a copy: it is not changed."""
        return self._store.weight

    def commit(self) -> None:
        if self._update is None:
            raise UpdateError(f"{self._store.target.name}: the update was forgotten")
        self._store.hang(self._key, self._update, self._position)

    def undo(self) -> None:
        position = self._store.position(self._key)
        if position is not None:
            self._position = position
        self._store.take(self._key)

    def forget(self) -> None:
        self._update = None


def edited_outputs(model: nn.Module) -> dict[str, int]:
    """{layer name: number of its updates}, for the layers that have any; of experts the names of
    their weights."""
    return {
        name.removesuffix(".weight"): len(edits)
        for layer, module in model.named_modules()
        for name, edits in _edits_in(layer, module)
    }


def hanging_updates(model: nn.Module) -> dict[str, LowRankUpdate]:
    """{target name: the sum of its updates}, for the weights that have any at their outputs."""
    return {
        name: edits.total
        for layer, module in model.named_modules()
        for name, edits in _edits_in(layer, module)
    }


def _edits_in(layer: str, module: nn.Module) -> list[tuple[str, OutputEdits]]:
    """The edits of a layer's weights, with the weights' names."""
    edits = getattr(module, _EDITS, {})
    return [(f"{layer}.{name}" if layer else name, one) for name, one in edits.items()]


@contextmanager
def without_notice(model: nn.Module) -> Iterator[None]:
    """While the context lasts, a state dict has the edits, so no warning is given."""
    notice = vars(model).pop(_NOTICE, None)
    if notice is None:
        yield
        return
    notice.remove()
    try:
        yield
    finally:
        _give_notice(model)


def _give_notice(model: nn.Module) -> None:
    handle = model.register_state_dict_pre_hook(_say_what_is_saved)  # type: ignore[no-untyped-call]
    setattr(model, _NOTICE, handle)


def _say_what_is_saved(model: nn.Module, *_: Any) -> None:
    """A state-dict hook, which `save_pretrained` calls too. Does not change what is saved."""
    edited = edited_outputs(model)
    if edited:
        log.warning(
            "the weights that are read or saved here are without their edits (apply: output): "
            "those are added to the outputs of %d layer(s), %s. save_edited saves the "
            "model with them",
            len(edited),
            ", ".join(edited),
        )
