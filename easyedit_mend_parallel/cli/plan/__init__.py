"""Planning an edit before anything is loaded: `plan` says where everything would lie, what it costs
and every reason for which it would not work."""

from __future__ import annotations

from easyedit_mend_parallel.cli.plan.check import Plan, plan
from easyedit_mend_parallel.cli.plan.costs import TOKENS, Memory, Step, TargetPlan, kind_of
from easyedit_mend_parallel.cli.plan.places import label, read_max_memory
from easyedit_mend_parallel.cli.plan.speeds import ASSUMED, Range, Speeds, measured

__all__ = [
    "ASSUMED",
    "TOKENS",
    "Memory",
    "Plan",
    "Range",
    "Speeds",
    "Step",
    "TargetPlan",
    "kind_of",
    "label",
    "measured",
    "plan",
    "read_max_memory",
]
