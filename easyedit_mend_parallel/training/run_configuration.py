"""What must be equal in a resumed run and in the run that it continues.

The number of processes, and how many edits each of them takes at once, may differ: their product,
the edits of a step, may not. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.weights.target import Target

PER_STEP = "edits_per_step"
PARTS = ("batch_size", "accumulate_bs", "processes")
"""The factors of the edits of a step."""


def configuration_of(
    hparams: MENDParallelTrainingHparams,
    targets: Sequence[Target],
    *,
    processes: int,
    examples: int,
    steps: int,
) -> dict[str, Any]:
    """What identifies a run of `steps` steps on `examples` examples in `processes` processes.

    Edits that are solved together are those of one process, so `PARTS` count for such a run.
    """
    names = ["seed", "opt", "lr", "lr_lr"]
    names += ["cedit", "cloc", "locality_examples", "neighbour_share", "locality_positions"]
    names += ["lr_schedule", "continuation_positions", "target_space", "chat", "chat_share"]
    parts = {
        "batch_size": hparams.batch_size,
        "accumulate_bs": hparams.accumulate_bs,
        "processes": processes,
    }
    if hparams.solved_edits > 1:
        names += ["solved_edits", "aggregate", "aggregate_options"]
    other_labels = {} if hparams.special_tokens_in_labels else {"special_tokens": False}
    found = {
        **other_labels,
        "inner_params": [target.name for target in targets],
        **{name: getattr(hparams, name) for name in names},
        **parts,
        "examples": examples,
        "steps": steps,
    }
    return comparable(found)


def comparable(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """`configuration`, also one that an older version wrote, with the edits of a step in place of
    their factors."""
    found = dict(configuration)
    if PER_STEP not in found and all(isinstance(found.get(name), int) for name in PARTS):
        found[PER_STEP] = found["batch_size"] * found["accumulate_bs"] * found["processes"]
        if "solved_edits" not in found:
            for name in PARTS:
                del found[name]
    return found
