"""Statistics of a model's token rows, gathered from requests: what normalising needs, untrained.

Forward and backward only, nothing is trained and no weight is changed. Knows no files and no
hyperparameters.
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
    """Take the token rows of `batches` into the statistics of `network`, as training does.

    Mean, deviation and count of the inputs and of the gradients at the outputs of each target
    (Mitchell et al. 2022, section 3.2); where targets share a network, of all of them together.
    Costs a forward and a backward down to the lowest target for each batch, and keeps none of it.
    Raises TrainingError where fewer than two rows came, and what `capture` raises.
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
