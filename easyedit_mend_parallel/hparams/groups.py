"""Who sets which hyperparameter, for docs/configuration.md. Knows names of fields only."""

from __future__ import annotations

from easyedit_mend_parallel.hparams.recorded import FIXED

EVERYONE = ("alg_name", "model_name", "archive", "model_kwargs", "inner_params")
"""What everyone sets; the last one only where the archive does not record it."""

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
"""What nobody should need to set, besides `UNREAD`: the network's options, which an archive records
and for which a new network has the usual ones, and bounds that fit as they are."""
