"""The store of scoped updates: a hook adds a request's rows to a layer's output for the sequences
in which the request's scope fires. If none fires, the layer's output is unchanged.

Supports every kind of weight, also quantized and offloaded ones. Writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.compiled import drop_compiled_graphs, never_traced
from easyedit_mend_parallel.weights.gate import Gate
from easyedit_mend_parallel.weights.row_keeper import KeptRows
from easyedit_mend_parallel.weights.scope import ScopedRequest, ScopedUpdate
from easyedit_mend_parallel.weights.scoped_memory import ScopedMemory, refuse_other_scope
from easyedit_mend_parallel.weights.sharding import shard_of, shard_of_layer
from easyedit_mend_parallel.weights.stores.protocol import WeightPlace
from easyedit_mend_parallel.weights.stores.references import LayerReference
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate
from easyedit_mend_parallel.weights.whole import is_distributed

log = logging.getLogger(__name__)

SCOPED = "scoped"
"""The value of `apply` that this store serves."""
_HOOK = "_easyedit_mend_parallel_scoped"
"""The attribute of a layer that holds its `ScopedRows`."""


_NOTHING = torch.empty(0)
"""In the place of rows; a slice of them would keep their memory."""


def offer(place: WeightPlace) -> ScopedStore | None:
    """A store for any weight, with `apply: scoped`."""
    if place.apply != SCOPED:
        return None
    return ScopedStore(place.target, place.target.layer(place.model), place.model)


class ScopedRows:
    """The forward hook of a layer: adds to each position the rows of the request that fired there.

    It runs before any other hook of the layer but that of `apply: output` (in a layer that is split
    between processes, after those that were there), and belongs to the
    layer: a deep copy of the model has a copy of it, with a copy of the gate.
    """

    def __init__(self, layer: nn.Module, target: Target, gate: Gate, split: bool) -> None:
        never_traced(ScopedRows, "__call__")
        self._target, self._gate = target, gate
        # A split layer's own hooks make its output whole, or a plain tensor: this one comes after.
        self._handle = layer.register_forward_hook(self, prepend=not split)
        setattr(layer, _HOOK, self)

    def remove(self, layer: nn.Module) -> None:
        self._handle.remove()
        delattr(layer, _HOOK)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """`output` plus the rows of the requests that fired; None (unchanged) if none did."""
        decision = self._gate.decision
        if decision is None or decision.requests is None:
            return None
        fired, route = decision.routing
        update = _one_of(self._gate.memory, fired, self._target.name, output.device)
        if update is None:
            return None
        shard = shard_of_layer(layer, self._target)
        if shard is not None and is_distributed(output):
            raise UpdateError(
                f"the output of the layer of {self._target.name} is a DTensor, to which no update "
                "can be added: parallelize the layer with use_local_output=True"
            )
        x = inputs[0].to(output.device)
        if shard is not None and is_distributed(x):
            x = shard.whole(x, "in")
        x = x.flatten(0, -2)
        if len(x) != len(route):
            raise UpdateError(
                f"the layer of {self._target.name} sees {len(x)} rows where {len(route)} tokens "
                "were read: a scoped edit needs a layer that sees every token once. Set "
                "`apply: output`"
            )
        here = (route >= 0).nonzero()[:, 0].to(output.device)
        rows = output.flatten(0, -2)
        whose = None if len(fired) == 1 else route[route >= 0].to(output.device)
        if shard is None:
            gain = update.added(x[here], whose)
        else:  # every process feels the same requests, so that all of them call this
            gain = update.added_here(x[here], rows.shape[-1], shard, whose)
        changed = rows.index_copy(0, here, (rows[here] + gain).to(output.dtype))
        return changed.view_as(output)


class ScopedStore(LayerReference):
    """The output of `layer`, edited by scope."""

    def __init__(self, target: Target, layer: nn.Module, model: nn.Module) -> None:
        super().__init__(target, layer, model)
        if target.expert is not None:
            raise UpdateError(
                f"{target.name} is one expert of a stack, and scoped edits need a layer that sees "
                "every token: set `apply: weight` or `apply: output`, or name weights that every "
                "token passes"
            )
        shard_of(model, target)  # refuses other splits than tensor parallelism

    def stage(self, update: LowRankUpdate) -> ScopedStaged:
        """Prepare `update`. Raises UpdateError if it has no scope, or another scope than the
        model's scoped edits."""
        if not isinstance(update, ScopedUpdate) or update.scope is None:
            raise UpdateError(
                f"the update of {self.target.name} does not say where it applies: with `apply: "
                "scoped` an edit needs its requests' scope (MendParallel makes it; a saved edit "
                "wants `scoping`)"
            )
        gate = Gate.of(self.model)
        if gate is not None:
            refuse_other_scope(gate.memory, update.scope)
        return ScopedStaged(self, update)

    def hang(
        self,
        rows: Sequence[tuple[ScopedRequest, KeptRows]],
        about: ScopedUpdate,
        serial: int | None,
    ) -> int:
        """Put the rows of requests into the memory. Returns their serial number there.

        `about` has the scope and the limit, and no rows. Raises UpdateError if the memory is full
        and no file can be written.
        """
        gate = Gate.of(self.model)
        if gate is None:
            assert about.scope is not None
            gate = Gate(self.model, ScopedMemory(about.scope, about.read))
        if not hasattr(self.layer, _HOOK):
            split = shard_of(self.model, self.target) is not None
            ScopedRows(self.layer, self.target, gate, split)
            drop_compiled_graphs()
        serial = gate.memory.next_serial() if serial is None else serial
        for request, own in rows:
            gate.memory.add(request, self.target.name, own, serial)
        gate.memory.keep_within(about.limit)
        return serial

    def take(self, requests: Sequence[ScopedRequest]) -> list[tuple[ScopedRequest, KeptRows]]:
        """Remove the rows of requests from the memory and return them. With the last rows the
        hooks are removed, too."""
        gate = Gate.of(self.model)
        if gate is None:
            return []
        taken = [(one, gate.memory.take(one, self.target.name)) for one in requests]
        if not gate.memory.holds(self.target.name) and hasattr(self.layer, _HOOK):
            getattr(self.layer, _HOOK).remove(self.layer)
            drop_compiled_graphs()
        if not len(gate.memory):
            gate.remove(self.model)
        return [(request, rows) for request, rows in taken if rows is not None]


class ScopedStaged:
    """The rows of some requests for one target. They can be removed without touching any other."""

    independent = True

    def __init__(self, store: ScopedStore, update: ScopedUpdate) -> None:
        self._store = store
        self._about = replace(update, keys=_NOTHING, values=_NOTHING, request=_NOTHING)
        self._rows: list[tuple[ScopedRequest, KeptRows]] | None = _by_request(update)
        """What `commit` puts into the memory; what `undo` took out of it is put back."""
        self._serial: int | None = None

    @property
    def before(self) -> Tensor | None:
        """The weight itself, not a copy: it is not changed."""
        return self._store.weight

    def commit(self) -> None:
        if self._rows is None:
            raise UpdateError(f"{self._store.target.name}: the update was forgotten")
        self._serial = self._store.hang(self._rows, self._about, self._serial)

    def undo(self) -> None:
        taken = self._store.take(self._about.requests)
        self._rows = taken or self._rows

    def forget(self) -> None:
        self._rows = None


def scoped_memory(model: nn.Module) -> ScopedMemory | None:
    """The memory of a model's scoped edits; None if it has none."""
    gate = Gate.of(model)
    return None if gate is None else gate.memory


def _by_request(update: ScopedUpdate) -> list[tuple[ScopedRequest, KeptRows]]:
    """Each request with its rows, which share no memory with those of others."""
    order = update.request.argsort(stable=True)
    counts = update.request.bincount(minlength=len(update.requests)).tolist()
    found = []
    for request, mine in zip(update.requests, torch.split(order, counts), strict=True):
        rows = LowRankUpdate(update.keys[mine], update.values[mine], update.request[mine])
        found.append((request, KeptRows(rows.detach())))
    return found


def _one_of(
    memory: ScopedMemory, requests: Sequence[ScopedRequest], target: str, device: torch.device
) -> LowRankUpdate | None:
    """The rows of `requests` for a target as one update, fp32 on `device`. The rows of the n-th
    request have `request` n. None if no request has rows."""
    keys, values, numbers = [], [], []
    for number, request in enumerate(requests):
        rows = memory.rows(request, target)
        if rows is None:  # an edit of other targets
            continue
        keys.append(rows.keys.to(device, torch.float32))
        values.append(rows.values.to(device, torch.float32))
        numbers += [number] * len(rows.keys)
    if not keys:
        return None
    return LowRankUpdate(
        torch.cat(keys), torch.cat(values), torch.tensor(numbers, dtype=torch.long, device=device)
    )
