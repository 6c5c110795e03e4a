"""The gate: hooks that look up, in each forward pass, which scoped update applies where.

The gate reads the hidden states of the blocks below the lowest target, which no edit changes. Its
decision exists during the call. What it has read exists as long as the cache of that call. Knows no
update's rows.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.weights.compiled import never_traced
from easyedit_mend_parallel.weights.reading import Reading, real_tokens
from easyedit_mend_parallel.weights.scope import ScopedRequest
from easyedit_mend_parallel.weights.scoped_memory import ScopedMemory
from easyedit_mend_parallel.weights.whole import whole_tensor

log = logging.getLogger(__name__)

_GATE = "_easyedit_mend_parallel_gate"
"""The attribute of a model that holds its `Gate`."""
_READING = "_easyedit_mend_parallel_reading"
"""The attribute of a cache with the gate's `Reading` of its sequences."""
_CACHES = ("cache", "past_key_values")
"""What transformers calls a cache as an argument and in an output: from 5.24 on, and before."""
_REORDERS = ("reorder_cache", "batch_select_indices")
"""Methods of a cache whose argument says which of its sequences to keep, and in which order."""


@dataclass
class Decision:
    """The decision of one forward pass: the request whose update applies to each position (B, T).

    `before` is the number of tokens of each sequence in `cache` before the pass.
    """

    ids: Tensor | None
    mask: object
    cache: Any
    before: int = 0
    states: dict[int, Tensor] = field(default_factory=dict)
    requests: list[list[ScopedRequest | None]] | None = None
    reading: Reading | None = None

    @cached_property
    def routing(self) -> tuple[list[ScopedRequest], Tensor]:
        """The requests that apply anywhere, and for each of the B × T positions the index of its
        request among them; -1 where none applies."""
        flat = [request for sequence in self.requests or () for request in sequence]
        numbers = {one: n for n, one in enumerate(dict.fromkeys(filter(None, flat)))}
        route = torch.tensor([-1 if one is None else numbers[one] for one in flat])
        return list(numbers), route


class Gate:
    """The hooks of one model for its `memory`; `remove` removes them."""

    def __init__(self, model: nn.Module, memory: ScopedMemory) -> None:
        never_traced(Gate, "_enter", "_leave", "_see")
        self.memory = memory
        self._open: dict[int, list[Decision | None]] = {}
        self._silent: dict[int, int] = {}
        self._warned = False
        name = memory.scope.blocks_name
        body = model.get_submodule(name.rpartition(".")[0])
        blocks = [block for _, block in model.get_submodule(name).named_children()]
        self._handles = [
            body.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            body.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
            *(
                blocks[number].register_forward_pre_hook(
                    partial(self._see, number), with_kwargs=True
                )
                for number in memory.scope.blocks
            ),
        ]
        setattr(model, _GATE, self)

    @classmethod
    def of(cls, model: nn.Module) -> Gate | None:
        gate: Gate | None = getattr(model, _GATE, None)
        return gate

    @property
    def decision(self) -> Decision | None:
        """The decision of this thread's forward pass; None outside of one, or while silent."""
        opened = self._open.get(threading.get_ident())
        return opened[-1] if opened else None

    def remove(self, model: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        delattr(model, _GATE)

    @property
    def is_silent(self) -> bool:
        return self._silent.get(threading.get_ident(), 0) > 0

    @contextmanager
    def silent(self) -> Iterator[None]:
        """While the context lasts, no scope fires in this thread's forward passes."""
        thread = threading.get_ident()
        self._silent[thread] = self._silent.get(thread, 0) + 1
        try:
            yield
        finally:
            self._silent[thread] -= 1

    def _enter(self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        opened = self._open.setdefault(threading.get_ident(), [])
        if self.is_silent:
            opened.append(None)
            return
        given = _arguments(body, args, kwargs)
        mask = given.get("attention_mask")
        cache: Any = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        if cache is None:
            self._warn_of_unseen_text(given.get("input_ids"), mask)
        opened.append(
            Decision(
                given.get("input_ids"),
                mask,
                cache,
                # asked now: the blocks below the gate add to it
                int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0,
            )
        )

    def _warn_of_unseen_text(self, ids: Tensor | None, mask: Any) -> None:
        """Say once that a pass continues a text of which the gate finds no cache."""
        if self._warned or ids is None or not isinstance(mask, Tensor) or mask.dim() != 2:
            return
        if mask.shape[1] > ids.shape[1]:
            self._warned = True
            log.warning(
                "a forward pass goes on after %d tokens that are in no cache known to this "
                "package: scoped edits are decided by its %d tokens alone. Pass the cache as `%s`",
                mask.shape[1] - ids.shape[1],
                ids.shape[1],
                "` or `".join(_CACHES),
            )

    def _leave(
        self, _body: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any
    ) -> None:
        opened = self._open.get(threading.get_ident())
        decision = opened.pop() if opened else None
        if not opened:
            self._open.pop(threading.get_ident(), None)
        if decision is None or decision.reading is None:
            return
        made = (getattr(output, name, None) for name in _CACHES)
        cache = next((one for one in made if one is not None), decision.cache)
        if cache is not None:
            _keep(cache, decision.reading)

    def _see(
        self, number: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        decision = self.decision
        if decision is None:
            return
        states = (args[0] if args else kwargs["hidden_states"]).detach()
        decision.states[number] = whole_tensor(states)  # the same on each process of a model
        if number == self.memory.scope.blocks[-1]:
            self._decide(decision)

    def _decide(self, decision: Decision) -> None:
        wanted = self.memory.scope.blocks
        home = decision.states[wanted[-1]].device
        states = torch.cat([decision.states[number].to(home) for number in wanted], -1)
        before = _read_before(decision, len(states))
        real = real_tokens(decision.mask, decision.before, (len(states), states.shape[1]))
        ids = None if decision.ids is None else decision.ids.cpu()
        decision.requests, decision.reading = self.memory.look_up(states, real, ids, before)


@contextmanager
def base_of(model: nn.Module) -> Iterator[None]:
    """While the context lasts, no scope fires in this thread's forward passes of `model`."""
    gate = Gate.of(model)
    if gate is None:
        yield
        return
    with gate.silent():
        yield


class _Reordering:
    """Wraps a method of a cache: selects the same sequences in the gate's reading."""

    def __init__(self, cache: Any, method: str) -> None:
        self._cache, self._method = cache, getattr(cache, method)

    def __call__(self, what: Any, *args: Any, **kwargs: Any) -> Any:
        reading = getattr(self._cache, _READING)
        setattr(self._cache, _READING, reading.taken(self._order(what, len(reading.encoded))))
        return self._method(what, *args, **kwargs)

    def _order(self, indices: Any, _count: int) -> Tensor:
        return torch.as_tensor(indices)


class _Repeating(_Reordering):
    """The same for a method whose argument says how often to repeat each sequence."""

    def _order(self, repeats: Any, count: int) -> Tensor:
        return torch.arange(count).repeat_interleave(int(repeats))


def _keep(cache: Any, reading: Reading) -> None:
    """Attach `reading` to the cache of the same forward pass, and to the cache's methods."""
    if isinstance(cache, (tuple, list)):
        return
    if not hasattr(cache, _READING):
        for method in _REORDERS:
            if hasattr(cache, method):
                setattr(cache, method, _Reordering(cache, method))
        if hasattr(cache, "batch_repeat_interleave"):
            cache.batch_repeat_interleave = _Repeating(cache, "batch_repeat_interleave")
    setattr(cache, _READING, reading)


def _read_before(decision: Decision, n_sequences: int) -> Reading | None:
    """The reading of the sequences in the forward pass's cache, cut to the tokens in the cache."""
    reading: Reading | None = getattr(decision.cache, _READING, None)
    if reading is None or len(reading.encoded) != n_sequences:
        return None
    held = decision.before
    if held == len(reading):
        return reading
    return reading.cut(held) if 0 < held < len(reading) else None


def _arguments(body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return kwargs
    names = list(inspect.signature(type(body).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}
