"""Writes the tables of docs/configuration.md from the fields of the hyperparameter classes.

    python scripts/document_hparams.py

Each field's meaning is the `#:` comment (or the docstring) beside it, and the group that it stands
in is the last `# comment` above it. Knows nothing of what a field does.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

from easyedit_mend_parallel import MENDParallelHyperParams, MENDParallelTrainingHparams
from easyedit_mend_parallel.hparams import MendHparams

PAGE = Path(__file__).parent.parent / "docs/configuration.md"
BEGIN = "<!-- keys, written by `make docs` -->\n"
END = "<!-- end of keys -->\n"
CLASSES = {
    MendHparams: None,
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
    """The lines of every group's heading and table."""
    for cls, only in CLASSES.items():
        meaning = meanings(cls)
        for group, fields in groups(cls).items():
            yield f"### {': '.join(filter(None, (only, group)))}"
            yield ""
            yield "| key | type | default | meaning |"
            yield "| --- | --- | --- | --- |"
            for field in fields:
                cells = (f"`{field.name}`", kind(field), default(field), meaning[field.name])
                yield f"| {' | '.join(cells)} |"
            yield ""


def kind(field: dataclasses.Field) -> str:
    return "" if field.type == "Any" else f"`{field.type}`".replace("|", "\\|")


def default(field: dataclasses.Field) -> str:
    """A default as yaml would say it."""
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
