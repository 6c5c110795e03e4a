"""Editing methods that installed packages offer, found through entry points.

A package names a module in the entry-point group ``easyedit``; the module has a function

    def editing_method(host): ...

``host.package`` is this package, wholly imported. The function returns None (nothing for this
EasyEdit), or an object with

    name            the ``alg_name`` that selects the method
    apply_to_model  what ALG_DICT holds for a method
    trainable       optional: a function that is called once with ``host`` and returns what
                    ALG_TRAIN_DICT holds for a method
    behaves_like    optional: a method of ALG_DICT. The plugin's method may edit in batches where
                    that one may, and reads the same hyperparameter files.

A plugin that cannot be used is left out with a warning. EasyEdit's own methods cannot be replaced.
"""

import functools
import importlib
import logging
import sys
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

LOG = logging.getLogger(__name__)

GROUP = "easyedit"

METHODS = {}
"""{name: what a plugin offered}: the methods that were added."""


@dataclass(frozen=True)
class Host:
    package: ModuleType


def find():
    """Add the methods of all installed packages to the registries.

    Called at the end of ``easyeditor/__init__.py`` and not where the registries are made: these
    are imported while half of the package does not exist yet, and a plugin may need all of it.
    """
    host = Host(sys.modules[__name__.partition(".")[0]])
    for entry_point in _entry_points():
        try:
            offers = getattr(entry_point.load(), "editing_method", None)
            method = offers(host) if offers is not None else None
            if method is not None:
                add(method, host)
        except Exception as error:  # whatever somebody else's package raises
            LOG.warning(
                "the plugin %s (%s) is left out: %s: %s",
                entry_point.name,
                entry_point.value,
                type(error).__name__,
                error,
            )


def add(method, host):
    """Add one method, which `find` describes. Raises ValueError for a name that is taken."""
    methods, trained = _registries()
    if method.name in methods or method.name.upper() in trained:
        raise ValueError(f"there is a method named {method.name!r} already")
    trainable = getattr(method, "trainable", None)
    if trainable is not None:
        trained[method.name.upper()] = trainable(host)
    methods[method.name] = method.apply_to_model
    METHODS[method.name] = method


def known_name(name):
    """The method that `name` behaves like if a plugin offers it, else `name` itself."""
    return getattr(METHODS.get(name), "behaves_like", None) or name


def also_with_plugins_names(normalize):
    """Let `normalize(config, expected, ...)` take the names of plugins, and keep them."""

    @functools.wraps(normalize)
    def normalize_too(config, expected, *args, **kwargs):
        name = config.get("alg_name") if config else None
        if name not in METHODS or known_name(name) != expected:
            return normalize(config, expected, *args, **kwargs)
        as_known = {**config, "alg_name": expected}
        legacy = kwargs.get("legacy_key", "alg")
        if as_known.get(legacy) == name:
            as_known[legacy] = expected
        return {**normalize(as_known, expected, *args, **kwargs), "alg_name": name}

    return normalize_too


def _entry_points():
    if sys.version_info < (3, 10):
        return metadata.entry_points().get(GROUP, ())
    return metadata.entry_points(group=GROUP)


def _registries():
    util = __name__.rpartition(".")[0]
    return (
        importlib.import_module(f"{util}.alg_dict").ALG_DICT,
        importlib.import_module(f"{util}.alg_train_dict").ALG_TRAIN_DICT,
    )
