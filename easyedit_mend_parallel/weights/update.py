"""The low-rank update of one target, and its use without being written.

It has two matrices, keys and values, and their algebra. A context manager adds updates to the
outputs of layers while a model runs. Knows nothing of hypernetworks or stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.sharding import Shard, shard_of
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.uses import See, Use, watch
from easyedit_mend_parallel.weights.whole import is_distributed

WRITE_LIMIT = 1 << 19
"""Elements of ΔW (fp32) computed at once when an update is written: as many as fit in a cache."""
WRITE_LIMIT_ELSEWHERE = 1 << 21
"""The same on devices other than a CPU, where each piece costs a kernel launch."""


@dataclass(frozen=True)
class LowRankUpdate:
    """ΔW = valuesᵀ keys (out × in), one pair of rows for each of n tokens.

    `keys` is (n, in) and `values` (n, out), both fp32 on one device, with the learned rate
    already in the values; `request` (n,) is the index of the request that each row belongs to.
    A layer's output changes by (x keysᵀ) values. Rows of padding are zero, not absent. The first
    `unit_keys` keys are those of the identity (all of them or none: `in` or 0), for an update that
    has more rows than the layer has inputs; `write` then forms no product with them.
    """

    keys: Tensor
    values: Tensor
    request: Tensor
    unit_keys: int = 0

    @classmethod
    def cat(cls, updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
        """The sum of `updates` of one target: the rows of one below those of the other."""
        return cls(
            torch.cat([update.keys for update in updates]),
            torch.cat([update.values for update in updates]),
            torch.cat([update.request for update in updates]),
        )

    def to(self, device: torch.device) -> LowRankUpdate:
        rows = (self.keys.to(device), self.values.to(device), self.request.to(device))
        return LowRankUpdate(*rows, self.unit_keys)

    def detach(self) -> LowRankUpdate:
        return LowRankUpdate(self.keys.detach(), self.values.detach(), self.request, self.unit_keys)

    def of_request(self, number: int) -> LowRankUpdate:
        """The rows of one request."""
        mine = (self.request == number).nonzero().flatten()
        return LowRankUpdate(self.keys[mine], self.values[mine], self.request[mine])

    def numbered_from(self, first: int) -> LowRankUpdate:
        """The same rows, with `first` added to the number of each request."""
        return LowRankUpdate(self.keys, self.values, self.request + first, self.unit_keys)

    def of_part(self, rows: slice, columns: slice, transposed: bool) -> LowRankUpdate:
        """The update of these rows and columns of the stored weight, which is in × out if
        `transposed`. Shares the memory of this one."""
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        return LowRankUpdate(self.keys[:, inputs], self.values[:, outputs], self.request)

    def is_finite(self) -> Tensor:
        """A boolean scalar on the update's device; reading it waits for that device.

        False if a row is not finite, or if the product of finite rows is not.
        """
        return torch.isfinite(self.largest_possible())

    def norm(self) -> Tensor:
        """‖ΔW‖ (Frobenius), from n × n Gram matrices, without forming ΔW."""
        gram = (self.keys @ self.keys.T) * (self.values @ self.values.T)
        return gram.sum().clamp(min=0).sqrt()

    def largest_possible(self) -> Tensor:
        """An upper bound of the largest entry of ΔW, without forming it."""
        of_values = self.values.abs().amax(1)
        of_keys = self.keys[self.unit_keys :].abs().amax(1)
        return of_values[: self.unit_keys].sum() + (of_keys * of_values[self.unit_keys :]).sum()

    @torch.no_grad()
    def write(self, weight: Tensor, transposed: bool, base: Tensor | None = None) -> None:
        """Add ΔW to `weight` in place, on the weight's device; with `base`, set it to base + ΔW.

        ΔW is computed in fp32, a few rows at a time, cast to the weight's dtype and added once,
        as EasyEdit does (`p + update.to(p.dtype)`). A fused product and sum (`addmm_`) would
        round into the weight once for each block of tokens.
        """
        keys, values = self.keys.to(weight.device), self.values.to(weight.device)
        unit, values = values[: self.unit_keys], values[self.unit_keys :]
        keys = keys[self.unit_keys :]
        left, right = (keys, values) if transposed else (values, keys)
        limit = WRITE_LIMIT if weight.device.type == "cpu" else WRITE_LIMIT_ELSEWHERE
        rows = max(1, limit // max(1, weight.shape[1]))  # a process may hold no columns
        change = right.new_empty(min(rows, weight.shape[0]), weight.shape[1])
        for start in range(0, weight.shape[0], rows):
            part = weight[start : start + rows]
            torch.mm(left[:, start : start + rows].T, right, out=change[: len(part)])
            if len(unit):
                end = start + len(part)
                change[: len(part)] += unit[start:end] if transposed else unit[:, start:end].T
            before = part if base is None else base[start : start + rows]
            torch.add(before, change[: len(part)].to(weight.dtype), out=part)

    def added(self, x: Tensor, route: Tensor | None = None) -> Tensor:
        """The change of the layer's output for inputs x (..., in): (..., out), fp32, on x's device.

        With `route` (B,), only the rows of request `route[b]` apply to sequence b; x then has B
        sequences in its first dimension, or B × T tokens. A route (n,) is that of each row of x.
        """
        return self._routed(x.float() @ self.keys.T, route) @ self.values

    def added_here(
        self, x: Tensor, width: int, shard: Shard, route: Tensor | None = None
    ) -> Tensor:
        """`added` for a layer that is split between processes: the change of this process's output.

        x has this process's columns of the input; `width` is the number of columns of its output.
        Every process must call this.
        """
        match = self._routed(shard.match(x.float(), self.keys), route)
        return shard.spread(match, self.values, width)

    def _routed(self, match: Tensor, route: Tensor | None) -> Tensor:
        """`match` (..., n) with zeros for the rows that do not apply to a sequence."""
        if route is None:
            return match
        mask = (route.unsqueeze(-1) == self.request).to(match.dtype)
        if len(route) != len(match):
            mask = mask.repeat_interleave(match.shape[0] // route.shape[0], dim=0)
        return match * mask.reshape(len(mask), *(1,) * (match.dim() - 2), mask.shape[1])


@contextmanager
def attached(
    model: nn.Module,
    targets: Mapping[str, Target],
    updates: Mapping[str, LowRankUpdate],
    route: Tensor | None = None,
    still: Tensor | None = None,
) -> Iterator[None]:
    """While the context lasts, every call of `model` has `updates` ({target name: update}).

    Each update is added to its layer's output, on the device of that output. Nothing is written,
    and accelerate's hooks stay. Differentiable in the updates. See `LowRankUpdate.added` for
    `route`. `still` (B, T), boolean, is true for tokens to which nothing is added. If a layer is
    split between processes, all of them must call the model in the same way.
    """
    with ExitStack() as stack:
        for name, update in updates.items():
            target = targets[name]
            adding = _adding(update, route, still, shard_of(model, target))
            stack.callback(watch(model, target, adding))
        yield


def output_with_update(
    update: LowRankUpdate,
    x: Tensor,
    output: Tensor,
    route: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """A layer's `output` plus what `update` adds to it, summed in fp32 and cast to its dtype once.

    For forward hooks. accelerate moves inputs inside the forward that it wraps, so a hook may see
    `x` on the previous device; the output's device is the one where the layer computed.
    """
    added = update.to(output.device).added(x.to(output.device), route)
    return (output + _moved(added, still)).to(output.dtype)


def _moved(added: Tensor, still: Tensor | None) -> Tensor:
    """`added` (B, T, out) or (n, out), with zeros at the tokens of `still` (B, T) or (n,)."""
    if still is None:
        return added
    here = still.to(added.device).reshape(*added.shape[:-1], 1)
    return added.masked_fill(here, 0.0)


def _adding(
    update: LowRankUpdate, route: Tensor | None, still: Tensor | None, shard: Shard | None
) -> See:
    def add(use: Use) -> Tensor:
        output, device = use.y, use.y.device
        here = None if route is None else use.of_rows(route).to(device)
        unmoved = None if still is None else use.of_rows(still)
        if shard is None:
            return output_with_update(update, use.x, output, here, unmoved)
        if is_distributed(output):
            raise UpdateError(
                f"the output of {shard.target}'s layer is a DTensor, to which no update can be "
                "added: parallelize the layer with use_local_output=True"
            )
        # A tensor-parallel layer sums its processes' parts inside its forward (or in earlier
        # hooks), so the output is already summed here.
        x = use.x.to(device)
        x = shard.whole(x, "in") if is_distributed(x) else x
        gain = update.to(device).added_here(x, output.shape[-1], shard, here)
        return (output + _moved(gain, unmoved)).to(output.dtype)

    return add


def refuse_non_finite(updates: Mapping[str, LowRankUpdate]) -> None:
    """Raise UpdateError, with the name of every target whose update has a NaN or an infinity."""
    if not updates:
        return
    verdicts = [update.is_finite() for update in updates.values()]
    home = verdicts[0].device
    finite = torch.stack([verdict.to(home) for verdict in verdicts]).tolist()  # one wait for all
    bad = [name for name, good in zip(updates, finite, strict=True) if not good]
    if bad:
        raise UpdateError(
            f"the update of {', '.join(bad)} is not finite; nothing was written. Check the "
            "archive's statistics, and the model's dtype (float16 overflows; bfloat16 does not)"
        )


def size_of(updates: Mapping[str, LowRankUpdate]) -> float:
    """A number by which processes compare their updates."""
    return sum(float(update.largest_possible()) for update in updates.values())
