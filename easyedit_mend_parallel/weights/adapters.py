"""Finds the adapters merged into a weight, and refuses an undo that would leave one in the weight.

PEFT stores with a layer what it merged and later subtracts exactly that, so a weight's bits belong
to a set of merged adapters. Reads this from the layer, without importing PEFT. Knows no updates.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.stores.protocol import Staged


class MergedAdapters:
    """Notes which adapters were merged into a weight when an update of it was staged."""

    def __init__(self) -> None:
        self._when_staged: weakref.WeakKeyDictionary[Staged, tuple[str, ...]] = (
            weakref.WeakKeyDictionary()
        )

    def note(self, model: nn.Module, staged: Mapping[str, Staged]) -> None:
        """Remember the adapters for `staged` {target name: staged update}."""
        for name, one in staged.items():
            self._when_staged[one] = merged_into(model, name)

    def refuse_other(self, model: nn.Module | None, staged: Mapping[str, Staged]) -> None:
        """Raise UpdateError if other adapters are merged into a weight now. Changes nothing.

        The bits to restore contain the previous adapters, but the layer would later subtract the
        present ones.
        """
        if model is None:
            return
        for name, one in staged.items():
            if one.independent or one not in self._when_staged:
                continue
            then, now = self._when_staged[one], merged_into(model, name)
            if then != now:
                raise UpdateError(
                    f"{name} cannot get back its bits from before the edit: {_say(now)} merged "
                    f"into the weight now, and {_say(then)} when it was edited, so what the "
                    f"adapter added would be lost or stay in the weight. Nothing was changed. "
                    f"{_what_to_do(then, now)}, then undo the edit again"
                )


def merged_into(model: nn.Module, name: str) -> tuple[str, ...]:
    """The names of the adapters that are merged into the weight `name`, in the order of merging.

    Raises UpdateError for a weight that is no longer in the model.
    """
    path = name.rpartition(".")[0]
    try:
        layer = model.get_submodule(path)
        above = model.get_submodule(path.rpartition(".")[0])
    except AttributeError as error:
        raise UpdateError(
            f"{name} is no longer in the model ({error}): was an adapter put on or taken off "
            "since the edit? Undo edits before that. Nothing was changed"
        ) from None
    adapted = above if getattr(above, "base_layer", None) is layer else layer
    merged = getattr(adapted, "merged_adapters", ())
    return tuple(map(str, merged)) if isinstance(merged, (list, tuple)) else ()


def _say(names: tuple[str, ...]) -> str:
    if not names:
        return "no adapter is"
    quoted = ", ".join(map(repr, names))
    return f"the adapter {quoted} is" if len(names) == 1 else f"the adapters {quoted} are"


def _what_to_do(then: tuple[str, ...], now: tuple[str, ...]) -> str:
    if not then:
        return "Take it out (model.unmerge_adapter())"
    again = f"merge {', '.join(map(repr, then))} (model.merge_adapter({list(then)}))"
    return f"Take it out (model.unmerge_adapter()) and {again}" if now else again.capitalize()
