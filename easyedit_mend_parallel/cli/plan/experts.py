"""What a plan says of experts: each of a stack is a target of its own.

Knows models on the meta device, and nothing of how a plan is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easyedit_mend_parallel.cli.plan.costs import TargetPlan
from easyedit_mend_parallel.cli.plan.model import Sketch
from easyedit_mend_parallel.cli.plan.places import SPLIT
from easyedit_mend_parallel.weights.target import Target, weights_named


def with_each_expert(sketched: Sketch, names: Sequence[Any]) -> list[str]:
    """`names` with the names of all its experts in the place of a stack's name."""
    return [one for name in map(str, names) for one in weights_named(sketched.model, name)]


def bytes_of_target(sketched: Sketch, target: Target) -> int:
    """The bytes of a target's weight; of one expert's, its part of the stack."""
    whole = sketched.bytes_of[target.parameter_name]
    return whole if target.expert is None else whole // len(target.parameter(sketched.model))


def problems_of_experts(targets: Sequence[TargetPlan], *, written: bool) -> list[str]:
    """A sentence for each stack of experts that cannot be edited where it will be."""
    found = {}
    for one in targets:
        if one.target.expert is None:
            continue
        stack = one.target.parameter_name
        if one.place == SPLIT:
            found[stack] = f"{stack} would be split between processes, and experts cannot be edited"
        elif written and one.store == "overlay":
            found[stack] = (
                f"{stack} would be on disk, and experts cannot be written there: set `apply: "
                "output`, or give its block a device or 'cpu' in device_map"
            )
    return list(found.values())
