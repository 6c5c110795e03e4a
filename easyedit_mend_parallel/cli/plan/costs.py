"""Counts the memory that an edit takes in addition to the loaded model, for each place.

Knows targets and places, and neither hyperparameter files nor archives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from easyedit_mend_parallel.cli.plan.places import Place, Places
from easyedit_mend_parallel.weights.target import Target

TOKENS = 32
"""The length of one request, prompt and target, for which memory is counted."""
FP32 = 4


@dataclass(frozen=True)
class TargetPlan:
    """One target: the place of its weight, the `device` where it computes, how the weight is stored
    (`kept`, as in `Placement`), and the name of its `store`. `bytes` is the size of the weight, or
    of one process's share of it."""

    target: Target
    place: Place
    device: Place
    kept: str
    store: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes at one place. `limit` is what may be used there, None if it is unknown.

    `backups`: of the edited weights while one edit is in the model (edited copies, for weights on
    disk); `backups_later`: the maximum with many sequential edits; `network`: the hypernetwork;
    `rows`: token rows and updates of one request of `TOKENS` tokens.
    """

    place: Place
    weights: int
    limit: int | None
    backups: int
    backups_later: int
    network: int
    rows: int

    @property
    def edit(self) -> int:
        """The memory of one edit here, in addition to the loaded model."""
        return self.backups + self.network + self.rows


def memory(
    places: Places,
    held: Mapping[Place, int],
    targets: Sequence[TargetPlan],
    network: tuple[Place, int] | None,
    overlay_limit: int | None,
    itemsize: int,
) -> list[Memory]:
    """The memory of each place that has weights or is used by an edit.

    `held`: bytes of weights by place. `network`: the place of the hypernetwork, and its bytes.
    `itemsize`: bytes of a number in the model's dtype.
    """
    backups: Counter[Place] = Counter()
    later: Counter[Place] = Counter()
    rows: Counter[Place] = Counter()
    for plan in targets:
        widths = sum(plan.target.shape)
        # x and δ as the model has them, then keys and values of the update.
        rows[plan.device] += TOKENS * widths * (itemsize + FP32)
        if plan.store not in ("overlay", "output"):
            backups[plan.place] += plan.bytes
            later[plan.place] += 3 * plan.bytes  # the base, the last edit, and the next meanwhile
    overlays = sum(plan.bytes for plan in targets if plan.store == "overlay")
    for token_mask, size in ((backups, overlays), (later, 2 * overlays)):
        in_memory = size if overlay_limit is None else min(size, overlay_limit)
        token_mask["cpu"] += in_memory
        token_mask["disk"] += size - in_memory
    if network is not None:
        widths = sum(sum(plan.target.shape) for plan in targets)
        rows[network[0]] += 2 * TOKENS * widths * FP32  # what goes in, and what comes out
    networks = Counter(dict([network] if network else []))
    everywhere = dict.fromkeys([*places.limits, *held, *backups, *rows, *networks])
    found = [
        Memory(
            place=where,
            weights=held.get(where, 0),
            limit=places.limits.get(where),
            backups=backups[where],
            backups_later=later[where],
            network=networks[where],
            rows=rows[where],
        )
        for where in everywhere
    ]
    return [one for one in found if one.weights or one.edit]
