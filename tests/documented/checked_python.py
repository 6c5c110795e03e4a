"""What can be said of Python that is not run: it compiles, its imports exist, and what it calls in
this package has the methods, fields and arguments that it uses.

Follows names through assignments and return annotations, as far as they lead to this package.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from documented.blocks import Block

OURS = "easyedit_mend_parallel"
UNKNOWN = object()


@dataclass(frozen=True)
class Instance:
    """Something whose class is known and whose value is not."""

    cls: type


class Reader:
    """Reads the Python of one page in order; `names` is what its names are known to be."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def problems(self, block: Block) -> list[str]:
        """What is wrong in `block`, each with its line."""
        try:
            tree = ast.parse("\n" * (block.line - 1) + block.code)
        except SyntaxError as error:
            return [f"{block.page}:{error.lineno}: {error.msg}"]
        found = []
        for statement in tree.body:
            found += [f"{block.page}:{line}: {text}" for line, text in self._in(statement)]
        return found

    def _in(self, statement: ast.stmt) -> Iterator[tuple[int, str]]:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from ((node.lineno, text) for text in self._imported(node))
            elif isinstance(node, ast.Attribute):
                yield from ((node.lineno, text) for text in self._attribute(node))
            elif isinstance(node, ast.Call):
                yield from ((node.lineno, text) for text in self._call(node))
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            self.names[statement.targets[0].id] = self._value(statement.value)

    def _imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for name in node.names:
                if importlib.util.find_spec(name.name.partition(".")[0]) is None:
                    yield f"there is no module {name.name}"
                elif name.name.startswith(OURS):
                    importlib.import_module(name.name)
                    self.names[name.asname or OURS] = importlib.import_module(
                        name.name if name.asname else OURS
                    )
            return
        top = (node.module or "").partition(".")[0]
        if importlib.util.find_spec(top) is None:
            yield f"there is no module {top}"
        if top != OURS:
            return
        try:
            module = importlib.import_module(node.module or "")
        except ImportError as error:
            yield str(error)
            return
        for name in node.names:
            self.names[name.asname or name.name] = getattr(module, name.name, UNKNOWN)
            if not hasattr(module, name.name):
                yield f"{node.module} has no {name.name}"

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        owner = self._value(node.value)
        if owner is not UNKNOWN and not _has(owner, node.attr):
            yield f"{ast.unparse(node.value)} has no {node.attr}"

    def _call(self, node: ast.Call) -> Iterator[str]:
        called = self._value(node.func)
        if called is UNKNOWN or not callable(called):
            return
        try:
            parameters = inspect.signature(called).parameters
        except ValueError:  # a class that has no __init__ of its own
            return
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in parameters:
                yield f"{ast.unparse(node.func)} has no argument {keyword.arg}"

    def _value(self, node: ast.expr) -> Any:
        """What an expression is known to be, or UNKNOWN."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if owner is UNKNOWN:
                return UNKNOWN
            if not isinstance(owner, Instance):
                return getattr(owner, node.attr, UNKNOWN)
            found = inspect.getattr_static(owner.cls, node.attr, UNKNOWN)
            return getattr(owner.cls, node.attr) if inspect.isfunction(found) else UNKNOWN
        if isinstance(node, ast.Call):
            return _returned(self._value(node.func))
        return UNKNOWN


def _has(owner: Any, name: str) -> bool:
    if not isinstance(owner, Instance):
        return hasattr(owner, name)
    fields = {
        field for base in owner.cls.__mro__ for field in vars(base).get("__annotations__", {})
    }
    set_by_init = inspect.getsource(owner.cls).count(f"self.{name} = ")
    return hasattr(owner.cls, name) or name in fields or bool(set_by_init)


def _returned(called: Any) -> Any:
    if isinstance(called, type):
        return Instance(called) if called.__module__.startswith(OURS) else UNKNOWN
    bound_to = getattr(called, "__self__", None)
    if isinstance(bound_to, type) and called.__name__.startswith("from_"):
        return Instance(bound_to)
    try:
        answer = typing.get_type_hints(called).get("return") if callable(called) else None
    except (NameError, TypeError):
        return UNKNOWN
    return _returned(answer) if isinstance(answer, type) else UNKNOWN
