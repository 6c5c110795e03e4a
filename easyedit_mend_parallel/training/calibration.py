"""Computes the statistics of a model's token rows from requests, for normalising without training.

Runs only forward and backward passes; nothing is trained and no weight is changed. Knows no files
and no hyperparameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.forward.batch import Batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.method.hypernetwork import GradientTransform, Hypernetwork
from easyedit_mend_parallel.weights.target import Target


def calibrate(
    model: nn.Module,
    targets: Sequence[Target],
    network: Hypernetwork,
    batches: Iterable[Batch],
) -> None:
    """Add the token rows of `batches` to the statistics of `network`, as training does.

    The statistics are mean, standard deviation and count of each target's inputs and output
    gradients (Mitchell et al. 2022, section 3.2); targets that share a network share them. Each
    batch costs a forward pass, and a backward pass to the lowest target; nothing else is stored.
    Raises TrainingError for fewer than two rows, and what `capture` raises.
    """
    for batch in batches:
        rows, _ = capture(model, targets, batch)
        network.observe(rows)
    for name, transform in network.mend.items():
        assert isinstance(transform, GradientTransform)
        count = transform.k.nan_to_num(0.0).item()
        if count < 2:
            raise TrainingError(
                f"{count:.0f} token(s) reached the targets of {name}, and a standard deviation "
                "needs two: give more requests"
            )
