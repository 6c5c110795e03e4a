"""Says which experts an edit leaves alone, since no token of its requests is sent to them.

Knows updates, and nothing of models.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)


def unreached(updates: Mapping[str, LowRankUpdate]) -> list[str]:
    """The targets whose update has no rows."""
    return [name for name, update in updates.items() if not len(update.keys)]


def refuse_unreached(updates: Mapping[str, LowRankUpdate]) -> None:
    """Raise TargetError if no target has rows."""
    left = unreached(updates)
    if len(left) == len(updates):
        raise TargetError(
            f"no token of these requests is sent to {', '.join(left)}, and an expert without "
            "tokens has nothing to learn from. Nothing was changed. Name other experts in "
            "inner_params, or all of a block by the name without a number"
        )


def say_unreached(updates: Mapping[str, LowRankUpdate], named: Collection[str]) -> None:
    """Log the targets without rows; a warning for those that were `named` one by one."""
    left = unreached(updates)
    warned = [name for name in left if name in named]
    if left:
        log.log(
            logging.WARNING if warned else logging.INFO,
            "%d of %d targets are experts to which no token of these requests is sent, and are "
            "left as they are: %s",
            len(left),
            len(updates),
            ", ".join(warned or left),
        )
