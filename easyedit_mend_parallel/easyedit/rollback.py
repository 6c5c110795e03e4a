"""Provides EasyEdit's `weights_copy`, for every way in which weights are restored with it.

Knows results, not models; the ledger restores the weights.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.easyedit.host import NAME
from easyedit_mend_parallel.editor import EditResult
from easyedit_mend_parallel.edits.base import kept_weight
from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights.whole import local_part

_Dictionary: Any = dict  # its methods are Mapping's here, whose signatures differ from dict's


class Rollback(Mapping[str, Tensor], _Dictionary):  # type: ignore[misc]
    """The rollback of one edit, as a callable and as a dictionary that cannot be changed.

    A call undoes the edit, to the bit. As a dictionary it gives the weights' bits from before the
    edit by name, on the devices of the backups. After the undo it gives the weights as they are in
    the model, and it is empty once the model was deleted. Pickled (`torch.save`), it is an
    `OrderedDict` of these tensors.

    Values are read when they are asked for: those of offloaded weights from where they are stored.

    EasyEdit restores weights by looping over `weights_copy.items()` and copying each value into the
    parameter of that name, which has no effect on an offloaded weight. Therefore `items()` undoes
    the edit with the ledger, and gives nothing to copy, if EasyEdit's own code calls it (unless
    EasyEdit keeps edits, `host_restores`), or if the edit was asked for with
    `keep_original_weight=True` (`caller_restores`), by which a script says that it will restore.
    """

    def __init__(self, result: EditResult, host_restores: bool, caller_restores: bool) -> None:
        super().__init__()
        self.result = result
        self._host_restores = host_restores
        self._caller_restores = caller_restores
        self._handed_out = False

    def __call__(self) -> None:
        self.result.rollback()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and bits from before the edit; or none, and the edit is undone (see the class)."""
        asked_by_host = _is_easyedits(sys._getframe(1).f_globals.get("__name__"))
        if not asked_by_host and not (self._caller_restores and self.result.entry.applied):
            return self.copy().items()
        if self._host_restores or self._caller_restores:
            self.result.rollback()
        nothing: dict[str, Tensor] = {}
        return nothing.items()

    def values(self) -> ValuesView[Tensor]:
        return self.copy().values()

    def settle(self) -> None:
        """If somebody copied the bits from before the edit back into the weights, forget the edit.

        Compares them only if the bits were handed out.
        """
        if not self._handed_out or not self.result.entry.applied:
            return
        entry = self.result.entry
        before, model = entry.before(), entry.model
        if before and all(_has(model, name, bits) for name, bits in before.items()):
            if isinstance(entry, SequenceEntry):
                entry.accept_bits()
            entry.undo()

    # Mappings compare their items, and reading them may take a disk.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names():
            raise KeyError(name)
        return self._bits([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<weights_copy of {', '.join(self) or 'a model that was deleted'}>"

    def copy(self) -> dict[str, Tensor]:
        """The names and bits, as an ordinary dictionary of the same tensors."""
        return self._bits(self._names())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __reduce_ex__(self, protocol: Any) -> Any:
        pairs = [(name, bits.detach()) for name, bits in self.copy().items()]
        return OrderedDict, (), None, None, iter(pairs)

    def _refuse_change(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError("weights_copy cannot be changed: call it to undo the edit")

    __setitem__ = __delitem__ = __ior__ = _refuse_change
    clear = pop = popitem = setdefault = update = _refuse_change

    def _names(self) -> list[str]:
        try:
            return list(self.result.targets) if self.result.entry.model is not None else []
        except UpdateError:  # the model was deleted
            return []

    def _bits(self, names: Iterable[str]) -> dict[str, Tensor]:
        self._handed_out = True
        entry = self.result.entry
        if entry.applied:
            before = entry.before()  # may solve the other edits again: once for all names
            return {name: before[name] for name in names}
        return {name: local_part(kept_weight(entry.model, name)) for name in names}


def _has(model: nn.Module, name: str, bits: Tensor) -> bool:
    """Whether this process stores these bits of the weight `name`."""
    return torch.equal(local_part(kept_weight(model, name)), bits)


def _is_easyedits(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == NAME
