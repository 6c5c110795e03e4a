"""Plans an edit without loading anything: `plan` finds places, memory and every problem."""

from __future__ import annotations

from easyedit_mend_parallel.cli.plan.check import Plan, plan
from easyedit_mend_parallel.cli.plan.costs import TOKENS, Memory, TargetPlan
from easyedit_mend_parallel.cli.plan.places import label, read_max_memory

__all__ = [
    "TOKENS",
    "Memory",
    "Plan",
    "TargetPlan",
    "label",
    "plan",
    "read_max_memory",
]
