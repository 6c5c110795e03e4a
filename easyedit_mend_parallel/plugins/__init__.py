"""What other packages can add with pluggy: editing methods for EasyEdit, and weight stores."""

from easyedit_mend_parallel.plugins.hookspecs import (
    EditingMethod,
    Host,
    hookimpl,
    hookspec,
)

__all__ = ["EditingMethod", "Host", "hookimpl", "hookspec"]
