"""Waits for the import of EasyEdit, and then joins it. Imports neither EasyEdit nor torch."""

from __future__ import annotations

import wrapt

from easyedit_mend_parallel.easyedit.host import NAME, early_release_is_installed

BRIDGE = __name__.rpartition(".")[0]


def join_when_imported() -> None:
    """Register the plugins' methods in EasyEdit now, or when it is imported."""
    if early_release_is_installed():
        wrapt.register_post_import_hook(
            f"{BRIDGE}.early_release:add_names_that_are_gone", "transformers.modeling_utils"
        )
    wrapt.register_post_import_hook(f"{BRIDGE}.registration:join", NAME)
