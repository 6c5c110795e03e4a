"""Provides EasyEdit's `weights_copy`, for every way in which EasyEdit restores weights.

Knows results, not models; the ledger restores the weights.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

from torch import Tensor

from easyedit_mend_parallel.editor import EditResult


class Rollback(Mapping[str, Tensor]):
    """The rollback of one edit, as a callable and as a mapping.

    A call undoes the edit, to the bit. As a mapping it gives the weights' bits from before the edit
    by name; it is empty after the undo.

    EasyEdit restores weights by looping over `weights_copy.items()` and copying each value into the
    parameter of that name, which has no effect on an offloaded weight. Therefore, if EasyEdit wants
    the edit undone (`restores`), `items()` undoes it with the ledger and gives nothing to copy.
    """

    def __init__(self, result: EditResult, restores: bool) -> None:
        self.result = result
        self._restores = restores

    def __call__(self) -> None:
        self.result.rollback()

    def items(self) -> ItemsView[str, Tensor]:
        """Undo the edit if EasyEdit loops in order to restore; always empty (see the class)."""
        if self._restores:
            self.result.rollback()
        nothing: dict[str, Tensor] = {}
        return nothing.items()

    # Mappings compare their items, but a comparison must not undo an edit.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Tensor:
        return self.result.entry.before()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.result.entry.before())

    def __len__(self) -> int:
        return len(self.result.entry.before())
