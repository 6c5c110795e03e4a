"""Hyperparameters in EasyEdit's spelling: the fields of a yaml file, and their checks.

Only this folder and the layers above it read hyperparameters.
"""

from easyedit_mend_parallel.hparams.editing import (
    HOST_METHOD,
    METHOD,
    MendHparams,
    MENDParallelHyperParams,
)
from easyedit_mend_parallel.hparams.training import MENDParallelTrainingHparams
from easyedit_mend_parallel.hparams.values import names_method

__all__ = [
    "HOST_METHOD",
    "METHOD",
    "MENDParallelHyperParams",
    "MENDParallelTrainingHparams",
    "MendHparams",
    "names_method",
]
