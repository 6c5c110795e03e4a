"""Makes compiled models run hooks that were added after they were compiled.

Knows torch.compile, and nothing of edits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def drop_compiled_graphs() -> None:
    """Drop all graphs that torch.compile has made in this process. The next call compiles again.

    Must be called after a hook was added to a layer or removed from it. By default torch's guards
    do not check hooks, so an earlier graph would run without them, and after a graph break one
    layer's graph could be used for another. From then on the guards check them, in the whole
    process.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch.compiler.reset()


@contextmanager
def uncompiled() -> Iterator[None]:
    """While the context lasts, compiled models run uncompiled, with all their hooks.

    Their graphs are kept and used again afterwards.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def never_traced(of: type, *methods: str) -> None:
    """Make torch.compile call these methods of a class uncompiled, in each forward pass.

    If it were traced, a method that decides by its data would decide only once, while compiling.
    """
    disable: Any = torch.compiler.disable
    for name in methods:
        method: Any = getattr(of, name)
        if not getattr(method, "_torchdynamo_disable", False):
            setattr(of, name, disable(method))
