"""Hyperparameters in EasyEdit's spelling: what a yaml file may say, and what is wrong with it.

Read by the editor, the trainers, the command line and the bridge; nothing below them sees any.
"""

from easyedit_mend_parallel.hparams.editing import (
    HOST_METHOD,
    METHOD,
    MendHparams,
    MENDParallelHyperParams,
)
from easyedit_mend_parallel.hparams.training import MENDParallelTrainingHparams

__all__ = [
    "HOST_METHOD",
    "METHOD",
    "MENDParallelHyperParams",
    "MENDParallelTrainingHparams",
    "MendHparams",
]
