"""The plugin manager: finds plugins through the entry-point group `easyedit`.

Knows the hooks, but not what plugins do with them.
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

    A plugin that cannot be imported is left out, with a warning, so that EasyEdit and other plugins
    still work.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for entry_point in metadata.entry_points(group=hookspecs.PROJECT):
        try:
            manager.load_setuptools_entrypoints(hookspecs.PROJECT, name=entry_point.name)
        except Exception as error:  # a third party's package may raise anything
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
    """What one plugin offers, and its installed `package` (empty if registered by hand). `methods`
    are the names of its methods; they are known only with a host."""

    plugin: str
    package: str
    version: str
    offers_methods: bool
    offers_stores: bool
    methods: tuple[str, ...] = ()


def offers(host: Host | None = None) -> list[Offers]:
    """What each plugin offers, by name. Without a host, names of methods are not known.

    Raises PluginError for an invalid offer.
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
    """The methods of all plugins for `host`. Raises PluginError for an invalid offer.

    With `installed=False`, only those of plugins that were registered by hand, not through an entry
    point.
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
    """The method of one plugin for `host`. Raises PluginError for an invalid offer."""
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
            f"the plugin {implementation.plugin_name} offers {offer.trainable!r} as trainable of "
            f"{offer.name!r}; it has to be a function of the host"
        )
    return offer
