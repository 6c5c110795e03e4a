"""Finding a place in a Python file by its structure, and inserting lines there.

Holds no text of the files that it edits: a place is a class, a function, an assignment, a call.
Knows nothing of EasyEdit.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)


class Missing(Exception):
    """A place that should be in the file is not there, or not just once."""


class Source:
    """The text of one file and its syntax tree, changed by inserting and replacing.

    Places are found in the file as it was read; changes are collected and made by `text`.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._text = text
        try:
            self.tree = ast.parse(text)
        except SyntaxError as error:
            raise Missing(f"{name} is no Python file ({error})") from error
        self._lines = text.splitlines(keepends=True)
        self._changes: list[tuple[int, int, str]] = []

    def the(
        self,
        kind: type[Node],
        what: str,
        fits: Callable[[Node], bool],
        inside: ast.AST | None = None,
    ) -> Node:
        """The one node of `kind` that `fits`; `what` says in words which it is."""
        found = self.all(kind, fits, inside)
        if len(found) != 1:
            raise Missing(f"{self.name}: {what} is there {len(found)} times, expected once")
        return found[0]

    def all(
        self, kind: type[Node], fits: Callable[[Node], bool], inside: ast.AST | None = None
    ) -> list[Node]:
        return [
            node for node in ast.walk(inside or self.tree) if isinstance(node, kind) and fits(node)
        ]

    def named(
        self,
        kind: type[ast.ClassDef] | type[ast.FunctionDef],
        name: str,
        inside: ast.AST | None = None,
    ) -> ast.ClassDef | ast.FunctionDef:
        """The class or function called `name`."""
        word = "class" if kind is ast.ClassDef else "function"
        return self.the(kind, f"the {word} {name}", lambda node: node.name == name, inside)

    def assigned(self, name: str) -> ast.Assign:
        """The assignment to `name` at the top of the file."""

        def fits(node: ast.Assign) -> bool:
            return node in self.tree.body and any(
                isinstance(target, ast.Name) and target.id == name for target in node.targets
            )

        return self.the(ast.Assign, f"the assignment to {name}", fits)

    def has(self, line: str) -> bool:
        """Whether a line, without its indentation, is in the file already."""
        return line in map(str.strip, self._lines)

    def indent(self, node: ast.stmt) -> str:
        return " " * node.col_offset

    def before(self, node: ast.stmt, *lines: str) -> None:
        """Insert lines, indented as `node` is, before it and its decorators."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        self._insert(first - 1, self.indent(node), lines)

    def after(self, node: ast.stmt, *lines: str) -> None:
        """Insert lines, indented as `node` is, after it."""
        assert node.end_lineno is not None
        self._insert(node.end_lineno, self.indent(node), lines)

    def after_imports(self, *lines: str) -> None:
        """Insert lines after the last import at the top of the file."""
        imports = [
            node for node in self.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        if not imports:
            raise Missing(f"{self.name}: an import is there 0 times")
        self.after(imports[-1], *lines)

    def wrap(self, node: ast.expr, left: str, right: str) -> None:
        """Put `left` and `right` around an expression."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        self._changes.append((*self._offset(node.end_lineno, node.end_col_offset), right))
        self._changes.append((*self._offset(node.lineno, node.col_offset), left))

    def text(self) -> str:
        """The file with all changes made."""
        text = self._text
        for start, end, new in sorted(self._changes, key=lambda change: -change[0]):
            text = text[:start] + new + text[end:]
        ast.parse(text)
        return text

    def _insert(self, line: int, indent: str, lines: tuple[str, ...]) -> None:
        start = sum(map(len, self._lines[:line]))
        end = "\r\n" if self._lines and self._lines[0].endswith("\r\n") else "\n"
        new = "".join(f"{indent}{one}{end}" if one else end for one in lines)
        if line == len(self._lines) and not self._text.endswith(("\n", "\r")):
            new = end + new
        self._changes.append((start, start, new))

    def _offset(self, line: int, utf8_column: int) -> tuple[int, int]:
        before = self._lines[line - 1].encode()[:utf8_column].decode()
        place = sum(map(len, self._lines[: line - 1])) + len(before)
        return place, place
