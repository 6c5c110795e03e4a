"""What an edit takes over the loaded model: memory by place, and about how long.

Memory is counted from sizes; time is an estimate from bytes, operations and speeds. Knows targets
and places, and neither hyperparameter files nor archives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from easyedit_mend_parallel.cli.plan.model import Sketch
from easyedit_mend_parallel.cli.plan.places import Place, Places
from easyedit_mend_parallel.cli.plan.speeds import Speeds
from easyedit_mend_parallel.weights.offload import SAFETENSORS, tied_names
from easyedit_mend_parallel.weights.placement import RESIDENT
from easyedit_mend_parallel.weights.target import Target

TOKENS = 32
"""The length that the figures are for: prompt and target of one request."""
FP32 = 4


@dataclass(frozen=True)
class TargetPlan:
    """One target: where its weight would lie (`place`) and compute (`device`), how it would be kept
    (`Placement.kept`), and which `store` would serve it. `bytes`: of its weight, or of its share
    in one process."""

    target: Target
    place: Place
    device: Place
    kept: str
    store: str
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes at one place. `limit` is what may be used there, None where nobody knows.

    `backups`: of the edited weights while one edit is in the model (their edited copies, where the
    weights lie on disk); `backups_later`: at most, with many sequential edits; `network`: the
    hypernetwork; `rows`: token rows and updates of one request of `TOKENS` tokens.
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
        """What one edit takes here over the loaded model."""
        return self.backups + self.network + self.rows


@dataclass(frozen=True)
class Step:
    """A part of an edit: bytes read or written, operations, `low` to `high` seconds."""

    name: str
    bytes: int
    flops: int
    low: float
    high: float


def memory(
    places: Places,
    held: Mapping[Place, int],
    targets: Sequence[TargetPlan],
    network: tuple[Place, int] | None,
    overlay_limit: int | None,
    itemsize: int,
) -> list[Memory]:
    """The memory of each place where there is some to report.

    `held`: bytes of weights by place. `network`: where the hypernetwork lives, and its bytes.
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


def time_of(
    places: Places,
    sketched: Sketch,
    targets: Sequence[TargetPlan],
    network: tuple[Place, int] | None,
    speeds: Speeds,
) -> list[Step]:
    """The parts of editing one request of `TOKENS` tokens, each with its estimate.

    A part takes as long as its bytes or its operations do, whichever is longer, and what calling
    its layers takes.
    """
    steps = []
    named = list(sketched.model.named_parameters(remove_duplicate=False))
    order_of = {name: order for order, (name, _) in enumerate(named)}
    lowest = min((order_of[plan.target.name] for plan in targets), default=0)
    for name, first in (("forward pass", 0), ("backward pass", lowest)):
        # Backward through frozen weights is one product for each, as forward is.
        sums: dict[tuple[str, str], int] = Counter()
        numbers: Counter[str] = Counter()
        layers = 0
        seen: set[int] = set()
        for order, (parameter, weight) in enumerate(named):
            if order < first or id(weight) in seen or not places.covers(parameter):
                continue
            seen.add(id(weight))
            kind = kind_of(places.device(parameter))
            kept = places.kept(parameter) if name == "forward pass" else RESIDENT
            sums[kind, kept] += sketched.bytes_of[parameter]
            if weight.dim() > 1 and not _is_embedding(sketched, parameter):
                numbers[kind] += weight.numel()
                layers += 1
        steps.append(_pass(name, sums, numbers, layers, speeds))
    if network is not None:
        kind, size = kind_of(network[0]), network[1]
        flops = 2 * TOKENS * len(targets) * size // FP32
        steps.append(_step("hypernetwork", kind, size, flops, len(targets), speeds))
    written = [plan for plan in targets if plan.store != "output"]
    for kind in dict.fromkeys(kind_of(_writes_on(plan)) for plan in written):
        mine = [plan for plan in written if kind_of(_writes_on(plan)) == kind]
        size = 4 * sum(plan.bytes for plan in mine)  # backed up, then read, changed and written
        numbers_there = sum(plan.target.in_features * plan.target.out_features for plan in mine)
        flops = 2 * TOKENS * numbers_there
        name = f"backup and write ({'CPU' if kind == 'cpu' else 'GPU'})"
        steps.append(_step(name, kind, size, flops, len(mine), speeds))
    return [step for step in steps if step.bytes]


def kind_of(place: Place) -> str:
    """ "cpu" or "accelerator": which of the speeds counts there."""
    return "cpu" if place in ("cpu", "disk") else "accelerator"


def _writes_on(plan: TargetPlan) -> Place:
    return plan.place if plan.kept == RESIDENT else "cpu"


def _pass(
    name: str,
    sizes: Mapping[tuple[str, str], int],
    numbers: Mapping[str, int],
    layers: int,
    speeds: Speeds,
) -> Step:
    """One pass through the model: what it takes to fetch offloaded weights, and to compute."""
    low, high = layers / speeds.calls.high, layers / speeds.calls.low
    for (kind, kept), size in sizes.items():
        if kept == SAFETENSORS:
            low, high = low + size / speeds.disk.high, high + size / speeds.disk.low
        if kept != RESIDENT and kind == "accelerator":
            low, high = low + size / speeds.link.high, high + size / speeds.link.low
    for kind in dict.fromkeys(kind for kind, _ in sizes):
        size = sum(size for (other, _), size in sizes.items() if other == kind)
        flops = 2 * TOKENS * numbers.get(kind, 0)
        here = _step(name, kind, size, flops, 0, speeds)
        low, high = low + here.low, high + here.high
    return Step(name, sum(sizes.values()), 2 * TOKENS * sum(numbers.values()), low, high)


def _step(name: str, kind: str, size: int, flops: int, calls: int, speeds: Speeds) -> Step:
    memory, compute = speeds.memory[kind], speeds.flops[kind]
    return Step(
        name,
        size,
        flops,
        low=max(size / memory.high, flops / compute.high) + calls / speeds.calls.high,
        high=max(size / memory.low, flops / compute.low) + calls / speeds.calls.low,
    )


def _is_embedding(sketched: Sketch, parameter: str) -> bool:
    layer = sketched.model.get_submodule(parameter.rpartition(".")[0])
    tied = len(tied_names(sketched.model, parameter)) > 1  # then it is the head's product, too
    return isinstance(layer, nn.Embedding) and not tied
