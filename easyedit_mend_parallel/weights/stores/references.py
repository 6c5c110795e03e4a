"""References a target's model and layer weakly, so that no store keeps a deleted model alive.

Knows nothing of weights or of updates.
"""

from __future__ import annotations

import weakref

from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.target import Target


class ModelReference:
    """A weak reference to the `model` of `target`."""

    def __init__(self, target: Target, model: nn.Module) -> None:
        self.target = target
        self._model = weakref.ref(model)

    @property
    def model(self) -> nn.Module:
        """The model. Raises UpdateError if it was deleted."""
        model = self._model()
        if model is None:
            raise UpdateError(f"{self.target.name}: its model no longer exists")
        return model


class LayerReference(ModelReference):
    """Weak references to the `model` and the `layer` of `target`."""

    def __init__(self, target: Target, layer: nn.Module, model: nn.Module) -> None:
        super().__init__(target, model)
        self._layer = weakref.ref(layer)

    @property
    def layer(self) -> nn.Module:
        """The target's layer. Raises UpdateError if its model was deleted."""
        layer = self._layer()
        if layer is None:
            raise UpdateError(f"{self.target.name}: its model no longer exists")
        return layer

    @property
    def weight(self) -> Tensor:
        """The target's weight itself, not a copy. Raises UpdateError if the model was deleted."""
        parameter = self.layer.get_parameter(self.target.attribute)
        return self.target.part_of(parameter.detach())
