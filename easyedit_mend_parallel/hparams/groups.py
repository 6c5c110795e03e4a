"""Groups the hyperparameters by who sets them, for docs/configuration.md. Knows only their
names."""

from __future__ import annotations

from easyedit_mend_parallel.hparams.recorded import FIXED

EVERYONE = ("alg_name", "model_name", "archive", "model_kwargs", "inner_params")
"""Fields that everyone sets; the last one only if the archive does not record it."""

UNREAD = (
    "hidden_dim",
    "act",
    "cbase",
    "dropout",
    "train_base",
    "no_grad_layers",
    "val_steps",
    "max_output_length",
    "eval_log_interval",
    "debug",
    "save",
    "silent",
    "verbose",
)
"""Keys of EasyEdit's files that no module of this package reads; EasyEdit's trainer reads some."""

NOBODY = (
    *(name for name in FIXED if name != "rank"),
    "lr_scale",
    "statistics_examples",
    "nan_limit",
)
"""Fields that nobody should need to set, besides `UNREAD`: options of the network, which an archive
records and which have defaults for a new network, and limits."""
