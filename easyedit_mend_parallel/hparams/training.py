"""Defines the hyperparameters that only training uses.

Knows the names of fields and nothing of how a network is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

from easyedit_mend_parallel.hparams.editing import MendHparams
from easyedit_mend_parallel.hparams.values import size_in_bytes


@dataclass(kw_only=True)
class MENDParallelTrainingHparams(MendHparams):
    """Hyperparameters for training the hypernetwork, with EasyEdit's `EditTrainer` or with
    `mend-parallel train`. Only the latter uses the fields below.
    """

    #: Locality examples per edit in each training step.
    locality_examples: int = 1
    #: Fraction of the locality examples that are neighbours: prompts about another subject of the
    #: same relation. The others are unrelated texts.
    neighbour_share: float = 0.6
    #: Maximum number of positions per locality example at which predictions are compared.
    locality_positions: int = 6
    #: Maximum number of positions after each answer at which the edited model is compared with the
    #: base model, given prompt and answer. The first is the answer's last token. `0`: text after an
    #: answer is not compared.
    continuation_positions: int = 0
    #: Largest number of edits that a training step solves together, like a batch or a sequence. The
    #: number is drawn anew for each step, from 1 to this one, small ones more often. `1`: each edit
    #: is made by itself.
    solved_edits: int = 1
    #: With `chat`, the fraction of facts in chat form; the others stay plain.
    chat_share: float = 1.0
    #: Number of edits from which the network's statistics are computed before the first step.
    statistics_examples: int = 1000
    #: Memory of the hidden-state cache, which stores the outputs of the blocks below the lowest
    #: target: bytes, or a size such as `1GiB`.
    trunk_memory: int | str = "1GiB"
    #: Disk space of the hidden-state cache, used when `trunk_memory` is full. With `0` for both,
    #: every step runs the whole model.
    trunk_disk: int | str = 0
    #: Folder of the hidden-state cache on disk, for later runs to reuse. Default: a temporary file.
    trunk_folder: str | None = None
    #: Schedule of `lr` and `lr_lr`: `constant`, `linear` or `cosine`, as in transformers.
    lr_schedule: str = "constant"
    #: Stop after this many consecutive steps whose gradient is not finite.
    nan_limit: int = 10

    @property
    def trunk_bytes(self) -> tuple[int, int]:
        """`trunk_memory` and `trunk_disk` in bytes."""
        memory = size_in_bytes("trunk_memory", self.trunk_memory)
        return memory, size_in_bytes("trunk_disk", self.trunk_disk)

    @property
    def edits_untrained(self) -> bool:
        """False: training makes the hypernetwork, whatever `untrained` says of editing."""
        return False
