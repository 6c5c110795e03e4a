"""Whether an archive was made for the targets that a file names, also where some of them are not in
the model. Knows shapes and names, and no places."""

from __future__ import annotations

from easyedit_mend_parallel.method.archive import RATES, Archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork

BY_NUMBER = (RATES, "mode_shift.weight", "mode_scale.weight")
"""Tensors whose shapes say how many targets there are."""


def refuse_misfit(archive: Archive, network: Hypernetwork, n_named: int) -> None:
    """Raise ArchiveError where `archive` does not fit `network`, made for targets of which
    `n_named` are named. Those that `network` lacks are an error of their own: then only what does
    not depend on them is compared, and the number."""
    differences = archive.differences(network)
    if len(network.targets) != n_named:
        wanted = network.state_dict()
        differences = {
            name: says
            for name, says in differences.items()
            if name in wanted and not name.endswith(BY_NUMBER)
        }
        trained = len(archive.state[RATES])
        if trained != n_named:
            differences[RATES] = f"it has {trained} targets, and inner_params names {n_named}"
    archive.refuse_other(differences)
