"""The least-squares systems of a sequence's edits, one for each target: they hold edits in order.

Knows edits that have their rows. Knows no model, and not how rows are made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.method.growing_system import (
    LARGEST_ERROR,
    GrowingSystem,
    SolveRows,
    SystemOptions,
    empty_systems,
)
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.method.sequence_edit import SequenceEdit, Updates, same_edits
from easyedit_mend_parallel.weights.target import Target

log = logging.getLogger(__name__)


class SequenceSystems:
    """The systems of `targets`, made when they are first solved.

    They hold the settled edits, which cannot be taken out, and after those the edits of the last
    call of `solved`.
    """

    def __init__(self, targets: Sequence[Target], options: SystemOptions) -> None:
        self._targets, self._options = targets, options
        self.preserved: PreservedInputs | None = None
        """The inputs of preserved text that the systems began with."""
        self._of: dict[str, GrowingSystem] = {}
        self._held: list[SequenceEdit] = []

    @property
    def nbytes(self) -> int:
        return sum(system.nbytes for system in self._of.values())

    def hold(self, edits: Sequence[SequenceEdit]) -> bool:
        """Whether the systems hold just these edits, besides the settled ones."""
        return same_edits(self._held, edits)

    def solved(
        self,
        edits: Sequence[SequenceEdit],
        preserved: Callable[[], PreservedInputs | None],
        memory: int,
    ) -> Updates:
        """{target name: the net update of the settled edits and of `edits`}, fp32.

        `preserved` gives the inputs of preserved text, with which new systems begin; it is called
        for those only. Raises UpdateError if the systems need more than `memory` bytes or cannot be
        solved; they then hold the settled edits alone.
        """
        self._begin(preserved)
        try:
            self._bring_to(edits)
            if any(system.error() > LARGEST_ERROR for system in self._of.values()):
                log.info("the systems have lost precision and are solved from their rows again")
                self.restart()
                self._bring_to(edits)
            net = {name: system.net() for name, system in self._of.items()}
        except BaseException:
            self.restart()
            raise
        size = self.nbytes
        if size > memory:
            self.restart()
            raise UpdateError(
                f"the systems of this model's edits need {size >> 20} MiB, and sequence_memory is "
                f"{memory >> 20} MiB; nothing was written. Raise sequence_memory, set "
                "preserved_text_weight: 0, or add edits up unsolved with `sequence: add`"
            )
        return net

    def alone(
        self, rows: Mapping[str, SolveRows], preserved: Callable[[], PreservedInputs | None]
    ) -> Updates:
        """{target name: the update of the edit with these `rows` as the only one}, fp32. Raises
        what `GrowingSystem.alone` raises."""
        self._begin(preserved)
        found = {}
        for name, system in self._of.items():
            x, d = rows[name].rows(1.0)
            found[name] = system.alone(x, d, rows[name].label_mask)
        return found

    def _begin(self, preserved: Callable[[], PreservedInputs | None]) -> None:
        """Make the systems, unless they are made."""
        if not self._of:
            self.preserved = preserved()
            self._of = empty_systems(self._targets, self._options, self.preserved)

    def settle(self, count: int) -> None:
        """From now on the oldest `count` edits are held for good: their rows can be dropped."""
        oldest, self._held = self._held[:count], self._held[count:]
        for name, system in self._of.items():
            system.settle([edit.rows[name] for edit in oldest if edit.rows is not None])

    def restart(self, *, anew: bool = False) -> None:
        """Take out every edit but the settled ones; with `anew` those too."""
        if anew:
            self._of = {}
        for system in self._of.values():
            system.restart()
        self._held = []

    def _bring_to(self, edits: Sequence[SequenceEdit]) -> None:
        """Make the systems hold `edits`: from the edits that they hold already, or from none."""
        common = 0
        while common < min(len(edits), len(self._held)):
            if edits[common] is not self._held[common]:
                break
            common += 1
        while len(self._held) > common:
            self._held.pop()
            dropped = [system.drop_last() for system in self._of.values()]
            if not all(dropped):
                self.restart()
                common = 0
        for edit in edits[common:]:
            assert edit.rows is not None
            for name, system in self._of.items():
                system.add(edit.rows[name])
            self._held.append(edit)
