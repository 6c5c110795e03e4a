"""Compiled models: graphs that were compiled before a hook came do not run it.

Knows torch.compile, and nothing of edits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def drop_compiled_graphs() -> None:
    """Forget what torch.compile has made in this process; the next call compiles again.

    To be called after a hook was put on a layer or taken off. By default torch's guards do not look
    at hooks, so a graph from before runs without them; and where a graph breaks, one layer's
    may be used for another's. From here on they look, in the whole process.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.compiler.reset()


@contextmanager
def uncompiled() -> Iterator[None]:
    """While the context lasts, compiled models run as they are written, with all their hooks.

    What was compiled is kept, and is used again afterwards.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def never_traced(of: type, *methods: str) -> None:
    """Make torch.compile call these methods of a class in each forward pass, as they are.

    Traced, a method that decides by what it reads would decide once, while compiling.
    """
    disable: Any = torch.compiler.disable
    for name in methods:
        method: Any = getattr(of, name)
        if not getattr(method, "_torchdynamo_disable", False):
            setattr(of, name, disable(method))
