"""The edits of one model, solved together: edits one after another succeed like all at once.

A model is its base and a set of edits. With each further edit one least-squares system for each
target gives one net update for all of them, which takes the place of the earlier one in the
weights. Knows the ledger and systems, and nothing of tokenizers or of how an update is made.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.files.interrupts import interrupts_held
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.method.growing_system import SolveRows, SystemOptions
from easyedit_mend_parallel.method.mend import Proposal
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.method.sequence_edit import (
    MakeRows,
    Making,
    SequenceEdit,
    Updates,
    gone,
    not_replaced,
    same_edits,
    without,
)
from easyedit_mend_parallel.method.sequence_systems import SequenceSystems
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.foreign import WrittenBits
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.target import Target

log = logging.getLogger(__name__)


class EditSequence:
    """The edits of one model by one network and one set of options, solved together.

    Each edit's rows are made on the model without any edit of the sequence, so they depend neither
    on the others nor on their order. The first edit alone is what it would be without a sequence.
    `memory` bounds the bytes of edits and systems; past it the oldest edits are settled: they stay
    in the model, and come out only with all others (`rollback_all`).
    """

    _of_model: ClassVar[weakref.WeakKeyDictionary[nn.Module, dict[object, EditSequence]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        apply: str,
        options: SystemOptions,
        memory: int,
    ) -> None:
        self.targets, self.apply = list(targets), apply
        self.options, self.memory = options, memory
        self._model = weakref.ref(model)
        self._edits: list[SequenceEdit] = []
        self._settled: list[SequenceEdit] = []
        self._systems = SequenceSystems(self.targets, options)
        self._change: Entry | None = None
        self._net: Updates = {}
        self._former: tuple[list[SequenceEdit], Updates] = ([], {})
        """The edits before the last one, and their net update: what undoing that one writes."""
        self._bits = WrittenBits()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        targets: Sequence[Target],
        apply: str,
        options: SystemOptions,
        memory: int,
    ) -> EditSequence:
        """The sequence of `model` for these targets and options; `memory` holds from now on."""
        key = (tuple(target.name for target in targets), apply, options)
        known = cls._of_model.setdefault(model, {})
        if key not in known:
            if any(other.edits for other in known.values()):
                log.warning(
                    "the model has edits of another network, other targets or other options: "
                    "further edits are a sequence of their own, made on the model with those"
                )
            known[key] = cls(model, targets, apply, options, memory)
        known[key].memory = memory
        return known[key]

    @classmethod
    def all_of(cls, model: nn.Module) -> list[EditSequence]:
        """Every sequence of `model` that has edits."""
        return [one for one in cls._of_model.get(model, {}).values() if one.edits]

    @property
    def edits(self) -> list[SequenceEdit]:
        """The edits that are in the model, oldest first, the settled ones among them."""
        with Ledger.of(self.model).lock:
            self._look_whether_undone()
            return [*self._settled, *self._edits]

    @property
    def preserved(self) -> PreservedInputs | None:
        """The inputs of preserved text that the systems began with; None before the first solve."""
        return self._systems.preserved

    @property
    def requests(self) -> list[Request]:
        """Those of its edits, oldest first."""
        return [request for edit in self.edits for request in edit.requests]

    @property
    def change(self) -> Entry | None:
        """The net update's entry in the ledger; None where there is no edit."""
        return self._change

    def holds(self, edit: SequenceEdit) -> bool:
        return any(one.is_of(edit) for one in self.edits)

    def is_last(self, edit: SequenceEdit) -> bool:
        edits = self.edits
        return bool(edits) and edits[-1].is_of(edit)

    def add(
        self, requests: Sequence[Request], batch: Batch, making: Making
    ) -> tuple[SequenceEdit, Proposal]:
        """Solve `requests` together with the edits that are in the model, and write what results.

        A request with the prompt of an earlier one takes its place. Returns the edit, and its
        requests' own updates with their losses on the model without edits. Raises what the making
        raises, and UpdateError for weights that somebody else changed; the model and the sequence
        are then as they were.
        """
        with self._without_net() as write:
            solves_one = self.options.solves_one
            if self._edits or self._settled or solves_one:
                self._complete(self._edits, making.rows)
                others = not_replaced(self._edits, requests, self._settled)
                own = making.rows(batch, requests)
                alone = own.updates
                if len(requests) > 1 or solves_one:
                    alone = self._systems.alone(own.rows, making.preserved)
                edit = SequenceEdit(list(requests), alone=alone, rows=own.rows)
                proposal = Proposal(alone, own.losses)
            else:
                others, proposal = [], making.alone(batch, requests)
                edit = SequenceEdit(list(requests), batch, proposal.updates)
            edit.replaced = gone(self._edits, others)
            write([*others, edit], making.preserved)
            return edit, proposal

    def restore(
        self,
        edits: Sequence[SequenceEdit],
        preserved: Callable[[], PreservedInputs | None] = lambda: None,
    ) -> None:
        """Add edits that have their rows (saved ones), in their order, as one change.

        `preserved` gives the inputs of preserved text where the systems are still to be made.
        """
        with self._without_net() as write:
            self._complete(self._edits, None)
            left = list(self._edits)
            for edit in edits:
                others = not_replaced(left, edit.requests, self._settled)
                edit.replaced = gone(left, others)
                left = [*others, edit]
            write(left, preserved)

    def remove(self, edits: Sequence[SequenceEdit]) -> None:
        """Take edits out; the others are solved again, as if these had never been there.

        What they had replaced comes back. The bits are those from before where they were the last.
        Raises UpdateError for an edit that was settled, with nothing changed.
        """
        gone = [one for one in self.edits if any(one.is_of(edit) for edit in edits)]
        if any(one in self._settled for one in gone):
            raise UpdateError(
                f"the oldest {len(self._settled)} edits of this model were settled to stay within "
                "sequence_memory, so they come out only all together, with rollback_all. Raise "
                "sequence_memory before editing to keep edits separate"
            )
        if gone:
            with self._without_net() as write:
                write(without(self._edits, gone))

    def accept_bits(self) -> None:
        """Take the weights' present bits for those that the edits left there."""
        self._bits.note(self.model, self.targets)

    def before(self, edit: SequenceEdit) -> dict[str, Tensor]:
        """{target name: its bits as they would be without `edit`}; empty where that is not in the
        model, or was settled."""
        with Ledger.of(self.model).lock:
            if self._change is None or not self.holds(edit) or edit in self._settled:
                return {}
            base = self._change.before()
            left = without(self._edits, [one for one in self._edits if one.is_of(edit)])
            if not left and not self._settled:
                return {name: bits.clone() for name, bits in base.items()}
            net = self._solve(left)
            found = {}
            for target in self.targets:
                if target.name in base:
                    found[target.name] = torch.empty_like(base[target.name])
                    net[target.name].write(
                        found[target.name], target.transposed, base=base[target.name]
                    )
            return found

    def rows_of(self, edit: SequenceEdit, make: MakeRows | None) -> dict[str, SolveRows] | None:
        """{target name: rows} of an edit that is in the model, made now if they never were; None
        where they were settled, or nobody can make them."""
        found = next((one for one in self.edits if one.is_of(edit)), edit)
        if found.rows is None and found.batch is not None and make is not None:
            with self._without_net():
                self._complete([found], make)
        return found.rows

    @contextmanager
    def _without_net(self) -> Iterator[Callable[..., None]]:
        """The model without the net update; what is yielded writes that of the edits it is given.

        Where nothing is written, model and sequence are as they were.
        """
        model = self.model
        ledger = Ledger.of(model)
        with ledger.lock, interrupts_held():
            self._look_whether_undone()
            if self._change is not None:
                self._bits.refuse_changed(model, self.targets, self._change, self._net)
            kept = self._edits, self._change, self._net, self._former
            try:
                with ledger.without(self._change) as put:

                    def write(
                        edits: list[SequenceEdit],
                        preserved: Callable[[], PreservedInputs | None] = lambda: None,
                    ) -> None:
                        if edits or self._settled:
                            is_former = bool(edits) and same_edits(edits, self._former[0])
                            net = self._former[1] if is_former else self._solve(edits, preserved)
                            put(self.targets, net, self.apply)
                        else:
                            put.nothing()
                            net = {}
                        self._former = (self._edits, self._net)
                        self._edits, self._change, self._net = edits, put.entry, net
                        self._bits.note(model, self.targets)

                    yield write
                    self._settle()
            except BaseException:
                self._edits, self._change, self._net, self._former = kept
                self._bits.note(model, self.targets)
                raise

    def _complete(self, edits: Sequence[SequenceEdit], make: MakeRows | None) -> None:
        """Make the rows that are still to be made; the model is without the sequence's edits."""
        for edit in edits:
            if edit.rows is None:
                assert edit.batch is not None
                if make is None:
                    raise UpdateError(
                        f"the rows of the edit {edit.requests[0].prompt!r} were not made yet, and "
                        "only its editor can make them. Nothing was written. Keep the editor while "
                        "edits are saved, or put saved edits onto the model before it is edited"
                    )
                edit.rows = make(edit.batch, edit.requests).rows
                edit.batch = None

    def _solve(
        self,
        edits: Sequence[SequenceEdit],
        preserved: Callable[[], PreservedInputs | None] = lambda: None,
    ) -> Updates:
        """The net update of the settled edits and of `edits`."""
        if not self._settled and len(edits) == 1 and edits[0].alone is not None:
            return edits[0].alone
        return self._systems.solved(edits, preserved, self.memory)

    def _settle(self) -> None:
        """Let go of the oldest edits' rows where those and the systems exceed `memory`."""
        taken = self._systems.nbytes + sum(edit.nbytes for edit in self._edits)
        count = 0
        while taken > self.memory and count < len(self._edits) - 1:
            taken -= self._edits[count].nbytes
            count += 1
        if not count or not self._systems.hold(self._edits):
            return
        oldest, self._edits = self._edits[:count], self._edits[count:]
        self._systems.settle(count)
        for edit in oldest:
            edit.rows = edit.alone = None
        if not self._settled:
            log.warning(
                "the rows of this model's edits exceed sequence_memory: from now on the oldest are "
                "settled, which means that they come out only all together (rollback_all)"
            )
        self._settled += oldest
        self._former = ([], {})

    def _look_whether_undone(self) -> None:
        """Forget the edits where the ledger has undone their net update (`rollback_all`)."""
        if self._change is not None and not self._change.applied:
            self._systems.restart(anew=bool(self._settled))
            self._edits, self._settled, self._change, self._net = [], [], None, {}
            self._former = ([], {})

    @property
    def is_alive(self) -> bool:
        return self._model() is not None

    @property
    def model(self) -> nn.Module:
        """Raises UpdateError once the model is gone."""
        model = self._model()
        if model is None:
            raise UpdateError("the model that was edited no longer exists")
        return model
