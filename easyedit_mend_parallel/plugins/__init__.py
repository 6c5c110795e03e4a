"""What other packages can add through pluggy: editing methods for EasyEdit, stores for weights."""

from easyedit_mend_parallel.plugins.hookspecs import (
    EditingMethod,
    Host,
    hookimpl,
    hookspec,
)

__all__ = ["EditingMethod", "Host", "hookimpl", "hookspec"]
