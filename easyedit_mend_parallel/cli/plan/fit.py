"""Checks that an archive was made for the targets of a file, even if the model lacks some of them.

Knows shapes and names, and no places.
"""

from __future__ import annotations

from easyedit_mend_parallel.method.archive import RATES, Archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork

BY_NUMBER = (RATES, "mode_shift.weight", "mode_scale.weight")
"""Tensors whose shapes depend on the number of targets."""


def refuse_misfit(archive: Archive, network: Hypernetwork, n_named: int) -> None:
    """Raise ArchiveError if `archive` does not fit `network`. The file names `n_named` targets; if
    `network` lacks some, which is another error, only their number and the tensors that do not
    depend on it are compared."""
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
