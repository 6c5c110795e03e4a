"""What EasyEdit calls `weights_copy`: one object that every restore path of EasyEdit can use.

Knows results, not models: the restoring is the ledger's.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

from torch import Tensor

from easyedit_mend_parallel.editor import EditResult


class Rollback(Mapping[str, Tensor]):
    """The way back from one edit, as a mapping and as a callable.

    Called, it takes the edit out of the model, to the bit. Read as a mapping it gives the
    weights' bits from before the edit by name, and is empty once the edit is out.

    EasyEdit restores by looping over `weights_copy.items()` and copying each value into the
    parameter of that name, which writes nothing where a weight is offloaded. So `items()` is a
    restore path too: where EasyEdit wants the edit undone (`restores`), it undoes the edit
    through the ledger and leaves EasyEdit nothing to copy.
    """

    def __init__(self, result: EditResult, restores: bool) -> None:
        self.result = result
        self._restores = restores

    def __call__(self) -> None:
        self.result.rollback()

    def items(self) -> ItemsView[str, Tensor]:
        """Undo the edit where EasyEdit asks for that by looping; always empty (see the class)."""
        if self._restores:
            self.result.rollback()
        nothing: dict[str, Tensor] = {}
        return nothing.items()

    # A mapping is compared by its items, and asking whether two are equal must undo nothing.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Tensor:
        return self.result.entry.before()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.result.entry.before())

    def __len__(self) -> int:
        return len(self.result.entry.before())
