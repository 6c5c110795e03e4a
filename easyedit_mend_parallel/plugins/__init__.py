"""Plugins: other packages add editing methods for EasyEdit, and weight stores, with pluggy."""

from easyedit_mend_parallel.plugins.hookspecs import (
    EditingMethod,
    Host,
    hookimpl,
    hookspec,
)

__all__ = ["EditingMethod", "Host", "hookimpl", "hookspec"]
