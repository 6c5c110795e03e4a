"""The plugin manager: finds who offers something through the entry-point group `easyedit`.

Knows the hooks and nothing of what is offered through them.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import metadata

import pluggy

from easyedit_mend_parallel import hookspecs
from easyedit_mend_parallel.errors import PluginError
from easyedit_mend_parallel.hookspecs import EditingMethod, Host

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


def editing_methods(host: Host, installed: bool = True) -> list[EditingMethod]:
    """What all plugins offer to `host`. Raises PluginError for an offer that cannot be used.

    Without `installed`, only what plugins offer that were registered by hand and not found through
    an entry point.
    """
    manager = plugin_manager()
    found = [] if installed else [id(plugin) for plugin, _ in manager.list_plugin_distinfo()]
    offers: list[EditingMethod] = []
    for implementation in manager.hook.editing_method.get_hookimpls():
        if id(implementation.plugin) in found:
            continue
        offer = implementation.function(host)
        if offer is None:
            continue
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
        if offer.name in [other.name for other in offers]:
            raise PluginError(
                f"two plugins offer a method named {offer.name!r}, one of them "
                f"{implementation.plugin_name}: uninstall one"
            )
        offers.append(offer)
    return offers
