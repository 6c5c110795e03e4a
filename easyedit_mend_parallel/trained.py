"""What an editor reads for one model: the network, and how its archive wants batches combined.

Knows archives and hyperparameters; edits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.aggregate import Aggregate
from easyedit_mend_parallel.archive import WAYS_OUT, load_archive
from easyedit_mend_parallel.errors import ArchiveError, HparamsError, TargetError
from easyedit_mend_parallel.held_still import HeldStill, lines_of
from easyedit_mend_parallel.hparams import MendHparams
from easyedit_mend_parallel.hypernetwork import Hypernetwork
from easyedit_mend_parallel.placement import network_home
from easyedit_mend_parallel.target import Target
from easyedit_mend_parallel.untrained import identity_network


@dataclass
class Trained:
    """What was read for one model: its network, what its archive keeps for batches (`Aggregate`'s
    options), and the inputs of unrelated text, once gathered, with the lines they come from."""

    network: Hypernetwork
    aggregate: Mapping[str, Any] = field(default_factory=dict)
    held: tuple[tuple[str, ...], HeldStill] | None = None


def read_trained(model: nn.Module, targets: Sequence[Target], hparams: MendHparams) -> Trained:
    """The network that `hparams.archive` holds, or the identity where it shall be `untrained`.

    On the device where it is wanted, in eval mode, frozen. Raises ArchiveError.
    """
    archive = None if hparams.archive is None else load_archive(hparams.archive)
    kept: Mapping[str, Any] = {}
    if archive is not None:
        archive.say_other_labels(hparams.special_tokens_in_labels)
        kept = archive.header.get("aggregate", {})
        try:
            Aggregate.from_values(kept, f"the archive {hparams.archive} keeps options for batches")
        except HparamsError as error:
            raise ArchiveError(str(error)) from error
    if hparams.untrained:
        network = identity_network(targets, hparams.network_config(), archive)
    elif archive is None:
        raise ArchiveError(
            f"archive is null, and MEND edits with a trained hypernetwork: {WAYS_OUT}"
        )
    else:
        with torch.device("meta"):
            network = Hypernetwork(targets, hparams.network_config())
        archive.load_into(network)
    device = network_home(model, targets, hparams.network_device)
    return Trained(network.to(device).eval().requires_grad_(False), kept)


def aggregate_of(hparams: MendHparams, trained: Trained) -> Aggregate:
    """How batches are combined, and with least squares also the text that is held still."""
    options = hparams.aggregation(trained.aggregate)
    if options.how != "least_squares":
        return replace(options, held_still=None)
    if options.held_still is None or hparams.held_still is not None:
        options = replace(options, held_still=lines_of(hparams.held_still))
    return options


def refuse_other_targets(network: Hypernetwork, inner_params: Sequence[str]) -> None:
    made_for = [target.name for target in network.targets]
    if sorted(made_for) != sorted(inner_params):
        odd = sorted(set(made_for) ^ set(inner_params))
        raise TargetError(
            f"the network was made for other targets than inner_params names; the two differ in "
            f"{', '.join(odd)}"
        )
