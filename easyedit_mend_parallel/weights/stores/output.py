"""The store that writes nothing: updates hang on their layer, which adds them to its output.

For any weight, quantized or offloaded ones too; what kind it is makes no difference here.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate, output_with_update

log = logging.getLogger(__name__)

_EDITS = "_easyedit_mend_parallel_edits"
"""The attribute of a layer that holds its `OutputEdits`."""
_NOTICE = "_easyedit_mend_parallel_notice"
"""The attribute of an edited model that holds the handle of its notice on saving."""


def offer(place: WeightPlace) -> OutputStore | None:
    """A store for any weight whose update is not to be written."""
    if place.apply != "output":
        return None
    return OutputStore(place.target, place.target.layer(place.model), place.model)


class OutputEdits:
    """The one forward hook of a layer: adds every update that hangs on the layer to its output.

    It runs before any other hook of the layer, so that those see what an edited weight would
    give. It belongs to the layer: a deep copy of the model has a copy of it, with the edits made
    until then, and `to()`, accelerate's hooks and a new dispatch leave it alone.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._updates: list[tuple[object, LowRankUpdate]] = []
        self._sum: LowRankUpdate | None = None
        self._handle = layer.register_forward_hook(self, prepend=True)
        setattr(layer, _EDITS, self)

    @classmethod
    def on(cls, layer: nn.Module) -> OutputEdits | None:
        """The edits that hang on `layer`, if any do."""
        edits: OutputEdits | None = getattr(layer, _EDITS, None)
        return edits

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def total(self) -> LowRankUpdate:
        """The sum of all updates that hang here, as the rows of one."""
        assert self._sum is not None  # there is one from the first update on
        return self._sum

    def __call__(self, _layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """`output` with all updates added."""
        total = self._sum
        if total is None or total.keys.device != output.device:
            total = self._keep(self._updates, output.device)
        return output_with_update(total, inputs[0], output)

    def position(self, key: object) -> int | None:
        """The place of the update of `key` among the others; None where it does not hang here."""
        return next((place for place, (one, _) in enumerate(self._updates) if one is key), None)

    def hang(self, key: object, update: LowRankUpdate, position: int | None = None) -> None:
        """Add `update` under `key`, as the last one or at `position`."""
        if self.position(key) is None:
            position = len(self) if position is None else position
            updates = [*self._updates[:position], (key, update), *self._updates[position:]]
            self._keep(updates, update.keys.device)

    def take(self, layer: nn.Module, key: object) -> None:
        """Take the update of `key` off `layer`; with the last one the hook goes."""
        left = [(one, update) for one, update in self._updates if one is not key]
        if not left:
            self._handle.remove()
            delattr(layer, _EDITS)
        elif len(left) < len(self):
            self._keep(left, left[0][1].keys.device)

    @torch.no_grad()
    def _keep(
        self, updates: list[tuple[object, LowRankUpdate]], device: torch.device
    ) -> LowRankUpdate:
        """Keep the rows of `updates` as those of one, on `device`, and each as a view of its part.

        One product is then made for all, and nothing is kept twice.
        """
        with torch.inference_mode(False):  # what is kept has to serve a backward pass, too
            total = LowRankUpdate(
                torch.cat([update.keys.to(device) for _, update in updates]),
                torch.cat([update.values.to(device) for _, update in updates]),
                torch.cat([update.request.to(device) for _, update in updates]),
            )
        counts = [len(update.keys) for _, update in updates]
        parts = zip(
            torch.split(total.keys, counts),
            torch.split(total.values, counts),
            torch.split(total.request, counts),
            strict=True,
        )
        self._updates = [
            (key, LowRankUpdate(*part)) for (key, _), part in zip(updates, parts, strict=True)
        ]
        self._sum = total
        return total


class OutputStore:
    """The output of `layer`. Holds the layer and its model weakly: a deleted model is freed."""

    def __init__(self, target: Target, layer: nn.Module, model: nn.Module) -> None:
        self.target = target
        self._layer = weakref.ref(layer)
        self._model = weakref.ref(model)
        if hasattr(layer.weight, "to_local"):
            raise UpdateError(
                f"{target.name} is a shard of a tensor-parallel weight: its layer puts out a part, "
                "to which no update can be added yet. Set `apply: weight`"
            )

    @property
    def layer(self) -> nn.Module:
        layer = self._layer()
        if layer is None:
            raise UpdateError(f"{self.target.name}: its model no longer exists")
        return layer

    def stage(self, update: LowRankUpdate) -> OutputStaged:
        """Nothing is backed up, since nothing will be overwritten."""
        return OutputStaged(self, update)

    def hang(self, key: object, update: LowRankUpdate, position: int | None) -> None:
        edits = OutputEdits.on(self.layer) or OutputEdits(self.layer)
        edits.hang(key, update, position)
        model = self._model()
        if model is not None and not hasattr(model, _NOTICE):
            _give_notice(model)

    def take(self, key: object) -> int | None:
        """Take the update of `key` off; where it was among the others, or None."""
        edits = OutputEdits.on(self.layer)
        if edits is None:
            return None
        position = edits.position(key)
        edits.take(self.layer, key)
        model = self._model()
        if model is not None and hasattr(model, _NOTICE) and not edited_outputs(model):
            getattr(model, _NOTICE).remove()
            delattr(model, _NOTICE)
        return position


class OutputStaged:
    """An update that is to hang on a layer. It comes off without touching any other."""

    independent = True

    def __init__(self, store: OutputStore, update: LowRankUpdate) -> None:
        self._store = store
        self._update: LowRankUpdate | None = update.detach()
        self._key = object()
        self._position: int | None = None

    @property
    def before(self) -> Tensor | None:
        """The weight itself and no copy of it, as the model has it: it is not changed."""
        weight = self._store.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def commit(self) -> None:
        if self._update is None:
            raise UpdateError(f"{self._store.target.name}: the update was let go")
        self._store.hang(self._key, self._update, self._position)

    def undo(self) -> None:
        position = self._store.take(self._key)
        if position is not None:
            self._position = position

    def forget(self) -> None:
        self._update = None


def edited_outputs(model: nn.Module) -> dict[str, int]:
    """{layer name: the number of updates that hang on it}, of the layers that have any."""
    edits = {name: OutputEdits.on(module) for name, module in model.named_modules()}
    return {name: len(hanging) for name, hanging in edits.items() if hanging is not None}


def hanging_updates(model: nn.Module) -> dict[str, LowRankUpdate]:
    """{layer name: the sum of the updates that hang on it}, of the layers that have any."""
    edits = {name: OutputEdits.on(module) for name, module in model.named_modules()}
    return {name: hanging.total for name, hanging in edits.items() if hanging is not None}


@contextmanager
def without_notice(model: nn.Module) -> Iterator[None]:
    """While the context lasts nothing is said of edits that a state dict lacks: it has them."""
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
    """A state-dict hook, which `save_pretrained` meets too. Changes nothing of what is saved."""
    edited = edited_outputs(model)
    if edited:
        log.warning(
            "what is read or saved here are the weights without their edits (apply: output): those "
            "hang on the outputs of %d layer(s), %s. save_edited saves the "
            "model with them",
            len(edited),
            ", ".join(edited),
        )
