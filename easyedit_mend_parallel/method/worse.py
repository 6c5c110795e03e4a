"""Refuses updates that make their own target less likely, or warns of them.

Knows requests and their losses, and nothing of updates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from easyedit_mend_parallel.errors import WorseError
from easyedit_mend_parallel.forward.requests import Request

log = logging.getLogger(__name__)

REFUSE, WARN, IGNORE = "refuse", "warn", "ignore"
WORSE_BY = 0.01
"""The increase of a loss (nats per token) above which an update is worse: 1 % of a probability. A
target that was certain can lose less than that by rounding."""
MOST_NAMED = 8


def refuse_worse(
    requests: Sequence[Request], before: Sequence[float], after: Sequence[float], how: str
) -> None:
    """Compare each request's loss before and after an edit (mean negative log-likelihoods).

    Raises WorseError if a loss increased by more than `WORSE_BY`, or is not a number. With `how`
    "warn" it only logs a warning.
    """
    worse = [
        f"{request.prompt!r} -> {request.target_new!r} ({was:.2f} before, {now:.2f} after)"
        for request, was, now in zip(requests, before, after, strict=True)
        if not now <= was + WORSE_BY
    ]
    if not worse:
        return
    named = "; ".join(worse[:MOST_NAMED])
    more = f"; and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    found = (
        f"after this update {len(worse)} of {len(requests)} targets are less likely than before, "
        f"by their mean loss for each token: {named}{more}"
    )
    if how == WARN:
        log.warning("%s. It was written anyway (on_worse: warn)", found)
        return
    raise WorseError(
        f"{found}. Nothing was kept. Leave such requests out, use an archive that was trained on "
        "targets like these, or set `on_worse: warn` to write the update anyway"
    )
