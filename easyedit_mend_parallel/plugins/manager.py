"""The plugin manager: finds who offers something through the entry-point group `easyedit`.

Knows the hooks and nothing of what is offered through them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import pluggy

from easyedit_mend_parallel.errors import PluginError
from easyedit_mend_parallel.plugins import hookspecs
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host

log = logging.getLogger(__name__)


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every installed plugin registered.

    A plugin that cannot be imported is left out, with a warning: it is no reason for EasyEdit or
    other plugins to fail.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for entry_point in metadata.entry_points(group=hookspecs.PROJECT):
        try:
            manager.load_setuptools_entrypoints(hookspecs.PROJECT, name=entry_point.name)
        except Exception as error:  # whatever somebody else's package raises when imported
            log.warning(
                "the plugin %s (%s) cannot be imported and is left out: %s: %s",
                entry_point.name,
                entry_point.value,
                type(error).__name__,
                error,
            )
    return manager


@dataclass(frozen=True)
class Offers:
    """What one plugin offers, and the installed `package` that it came with (empty: registered by
    hand). `methods`: their names, where a host was there to ask for."""

    plugin: str
    package: str
    version: str
    offers_methods: bool
    offers_stores: bool
    methods: tuple[str, ...] = ()


def offers(host: Host | None = None) -> list[Offers]:
    """What each plugin offers, by name. Without a host no method's name is known.

    Raises PluginError for an offer that cannot be used.
    """
    manager = plugin_manager()
    from_package = {id(plugin): package for plugin, package in manager.list_plugin_distinfo()}
    found = []
    for name, plugin in manager.list_name_plugin():
        package = from_package.get(id(plugin))
        hooks = manager.get_hookcallers(plugin) or []
        asked = [
            _offer(implementation, host)
            for implementation in manager.hook.editing_method.get_hookimpls()
            if implementation.plugin is plugin and host is not None
        ]
        found.append(
            Offers(
                plugin=name,
                package=package.metadata["Name"] if package else "",
                version=package.version if package else "",
                offers_methods="editing_method" in [hook.name for hook in hooks],
                offers_stores="weight_store" in [hook.name for hook in hooks],
                methods=tuple(offer.name for offer in asked if offer is not None),
            )
        )
    return sorted(found, key=lambda one: one.plugin)


def editing_methods(host: Host, installed: bool = True) -> list[EditingMethod]:
    """What all plugins offer to `host`. Raises PluginError for an offer that cannot be used.

    Without `installed`, only what plugins offer that were registered by hand and not found through
    an entry point.
    """
    manager = plugin_manager()
    found = [] if installed else [id(plugin) for plugin, _ in manager.list_plugin_distinfo()]
    methods: list[EditingMethod] = []
    for implementation in manager.hook.editing_method.get_hookimpls():
        if id(implementation.plugin) in found:
            continue
        offer = _offer(implementation, host)
        if offer is None:
            continue
        if offer.name in [other.name for other in methods]:
            raise PluginError(
                f"two plugins offer a method named {offer.name!r}, one of them "
                f"{implementation.plugin_name}: uninstall one"
            )
        methods.append(offer)
    return methods


def _offer(implementation: pluggy.HookImpl, host: Host) -> EditingMethod | None:
    """What one plugin offers to `host`. Raises PluginError for what cannot be used."""
    offer: Any = implementation.function(host)
    if offer is None:
        return None
    if not isinstance(offer, EditingMethod) or not callable(offer.apply_to_model):
        raise PluginError(
            f"the plugin {implementation.plugin_name} offers {offer!r}; editing_method has "
            "to return an EditingMethod with a callable apply_to_model, or None"
        )
    if offer.trainable is not None and not callable(offer.trainable):
        raise PluginError(
            f"the plugin {implementation.plugin_name} offers {offer.trainable!r} as what "
            f"trains {offer.name!r}; it has to be a function that is given the host"
        )
    return offer
