"""Reads an editor's network for one model, and the archive's options for batches.

Knows archives. Edits nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.errors import ArchiveError, HparamsError, TargetError
from easyedit_mend_parallel.method.archive import WAYS_OUT, load_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.method.untrained import identity_network
from easyedit_mend_parallel.weights.placement import network_home
from easyedit_mend_parallel.weights.scope import Scope
from easyedit_mend_parallel.weights.target import Target


@dataclass
class Trained:
    """The network of one model, with its archive's options for batches (`Aggregate`'s options) and
    its trained scope (or None). `preserved` has the inputs of preserved text, once gathered, with
    their token ids and the edits in the model at that time (`Ledger.state`)."""

    network: Hypernetwork
    aggregate: Mapping[str, Any] = field(default_factory=dict)
    preserved: tuple[Any, PreservedInputs] | None = None
    scope: Scope | None = None

    @property
    def target_names(self) -> list[str]:
        """The names of the targets of the network."""
        return [target.name for target in self.network.targets]

    @cached_property
    def fingerprint(self) -> int:
        """A number that identifies this network, computed from its parameters."""
        code = 0
        for _, tensor in sorted(self.network.state_dict().items()):
            numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            code = zlib.crc32(numbers.numpy().data, code)
        return code


def read_trained(
    model: nn.Module,
    targets: Sequence[Target],
    path: str | None,
    config: HypernetworkConfig,
    *,
    untrained: bool = False,
    device: int | str | None = None,
    special_tokens_in_labels: bool = True,
) -> Trained:
    """The network in the archive at `path`, or with `untrained` the identity.

    It has the options of `config` and is on `device` (None: that of the highest target), in eval
    mode and frozen. A warning is logged if the archive's labels were made otherwise than
    `special_tokens_in_labels` says. Raises ArchiveError.
    """
    archive = None if path is None else load_archive(path)
    kept: Mapping[str, Any] = {}
    if archive is not None:
        archive.say_other_labels(special_tokens_in_labels)
        kept = archive.header.get("aggregate", {})
        try:
            Aggregate.from_values(kept, f"the archive {path} keeps options for batches")
        except HparamsError as error:
            raise ArchiveError(str(error)) from error
    if untrained:
        network = identity_network(targets, config, archive)
    elif archive is None:
        raise ArchiveError(
            f"archive is null, and MEND edits with a trained hypernetwork: {WAYS_OUT}"
        )
    else:
        with torch.device("meta"):
            network = Hypernetwork(targets, config)
        archive.load_into(network)
    home = network_home(model, targets, device)
    scope = None if archive is None else archive.scope
    return Trained(network.to(home).eval().requires_grad_(False), kept, scope=scope)


def refuse_other_targets(network: Hypernetwork, inner_params: Sequence[str]) -> None:
    made_for = Trained(network).target_names
    if sorted(made_for) != sorted(inner_params):
        odd = sorted(set(made_for) ^ set(inner_params))
        raise TargetError(
            f"the network was made for other targets than inner_params names; the two differ in "
            f"{', '.join(odd)}"
        )
