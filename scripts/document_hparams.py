"""Writes the tables of docs/configuration.md from the fields of the hyperparameter classes.

    python scripts/document_hparams.py

Each field's meaning is the `#:` comment (or the docstring) beside it, and the group that it stands
in is the last `# comment` above it. Who sets it is in hparams/groups.py. Knows nothing of what a
field does.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

from easyedit_mend_parallel import MENDParallelHyperParams, MENDParallelTrainingHparams
from easyedit_mend_parallel.hparams.fields import MendFields
from easyedit_mend_parallel.hparams.groups import EVERYONE, NOBODY, UNREAD
from easyedit_mend_parallel.hparams.recorded import RECORDED

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
BEGIN = "<!-- keys, written by `make docs` -->\n"
END = "<!-- end of keys -->\n"
CLASSES = {
    MendFields: None,
    MENDParallelHyperParams: "While editing only",
    MENDParallelTrainingHparams: "While training only",
}
"""Whose own fields are listed, and what their groups' headings say besides."""


def meanings(cls: type) -> dict[str, str]:
    """{field of `cls` itself: what the comment beside it says}."""
    documented = ModuleAnalyzer.for_module(cls.__module__).find_attr_docs()
    return {
        name: " ".join(lines).strip()
        for (owner, name), lines in documented.items()
        if owner == cls.__name__
    }


def groups(cls: type) -> dict[str, list[dataclasses.Field]]:
    """{comment above: fields of `cls` itself}, in the order of the source."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    found: dict[str, list[dataclasses.Field]] = {}
    group = ""
    for line in inspect.getsource(cls).splitlines():
        if comment := re.match(r"    # (.+)", line):
            group = comment[1]
        elif (named := re.match(r"    (\w+): ", line)) and named[1] in fields:
            found.setdefault(group, []).append(fields[named[1]])
    return found


def tables() -> Iterator[str]:
    """The lines of every heading and table: what everyone sets, what some set, what nobody does."""
    rows = {field.name: row(field, says) for _, field, says in every_field()}
    some: dict[str, list[str]] = {}
    for heading, field, _ in every_field():
        if field.name not in (*EVERYONE, *NOBODY, *UNREAD):
            some.setdefault(f"What some set: {heading}", []).append(rows[field.name])
    yield from table("What everyone sets", [rows[name] for name in EVERYONE])
    for heading, chosen in some.items():
        yield from table(heading, chosen)
    yield from table("What nobody should need to set", [rows[name] for name in NOBODY])
    yield from table("What this package does not read", [rows[name] for name in UNREAD])


def every_field() -> Iterator[tuple[str, dataclasses.Field, str]]:
    """(heading, field, meaning) of every field, in the order of the source."""
    for cls, only in CLASSES.items():
        meaning = meanings(cls)
        for group, fields in groups(cls).items():
            for field in fields:
                yield ": ".join(filter(None, (only, group))), field, meaning[field.name]


def row(field: dataclasses.Field, meaning: str) -> str:
    return f"| {' | '.join((f'`{field.name}`', kind(field), default(field), meaning))} |"


def table(heading: str, rows: list[str]) -> Iterator[str]:
    yield f"### {heading}"
    yield ""
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    yield from rows
    yield ""


def kind(field: dataclasses.Field) -> str:
    says = field.type.removesuffix(" | None") if field.name in RECORDED else field.type
    return "" if says == "Any" else f"`{says}`".replace("|", "\\|")


def default(field: dataclasses.Field) -> str:
    """A default as yaml would say it."""
    if field.name in RECORDED:
        return "as the archive records"
    value = field.default
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "needed"
        value = field.default_factory()
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def page(text: str) -> str:
    """`text`, the configuration page, with its tables written anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + "\n".join(tables()) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
