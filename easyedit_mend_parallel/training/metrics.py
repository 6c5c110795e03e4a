"""Writes the figures of a training run to a JSONL file and to accelerate's trackers.

Plots are made from the file. A resumed run continues it from the step of its checkpoint, so that
there is one curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.evaluation.measures import Scores
from easyedit_mend_parallel.files import written_whole
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.training.checkpoint import refusing_full_disks

FILE = "metrics.jsonl"
SCORE = "score"
"""The sum of the four measures over all splits, as `early_stop_key`."""


class Metrics:
    """Appends lines to `folder/metrics.jsonl`, each with its `step`, and calls `tracked` with them.

    Lines of an earlier run after `step` are removed, since those steps run again. With `folder`
    None (another process writes) nothing is written.
    """

    def __init__(self, folder: Path | None, step: int, tracked: Any = None) -> None:
        self._path = None if folder is None else folder / FILE
        self._tracked = tracked
        if self._path is None:
            return
        kept = [line for line in read_metrics(self._path) if step and line["step"] <= step]
        with refusing_full_disks(self._path), written_whole(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def add(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line: `kind` is "train" or "eval", or says whose evaluation it is."""
        if self._path is None:
            return
        line = json.dumps({"step": step, "kind": kind, **values})
        with refusing_full_disks(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._tracked is not None:
            self._tracked({f"{kind}/{name}": value for name, value in values.items()}, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without an unfinished line of a killed run."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def selection_value(hparams: MENDParallelTrainingHparams, evaluations: Sequence[Scores]) -> float:
    """The figure that selects the best archive; smaller is better. Raises HparamsError for an
    `early_stop_key` that names none."""
    key = hparams.early_stop_key
    if key == SCORE:
        return -sum(scores.total for scores in evaluations)
    if key == "loss/total_edit_val":
        return sum(
            hparams.cedit * s.edit_loss + hparams.cloc * s.locality_loss for s in evaluations
        )
    raise HparamsError(
        f"early_stop_key is {key!r}; it must be 'loss/total_edit_val' (the loss that "
        f"training minimises) or {SCORE!r} (the sum of the measures, the larger the better)"
    )
