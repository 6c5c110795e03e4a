"""An update that makes its own target less likely is refused, or said.

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
"""How much larger a loss has to get (nats for each token) to count: 1 % of a probability. A target
that was certain before may lose less than that by rounding alone."""
MOST_NAMED = 8


def refuse_worse(
    requests: Sequence[Request], before: Sequence[float], after: Sequence[float], how: str
) -> None:
    """Compare each request's loss before and after an edit (mean negative log-likelihoods).

    Raises WorseError where a loss is larger than before by more than `WORSE_BY`, or not a number;
    with `how` "warn" that is only said (logging).
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
        log.warning("%s. It was written all the same (on_worse: warn)", found)
        return
    raise WorseError(
        f"{found}. Nothing was kept. Leave such requests out, use an archive that was trained on "
        "targets like these, or set `on_worse: warn` to write the update all the same"
    )
