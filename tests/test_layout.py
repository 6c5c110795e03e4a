"""What CONTRIBUTING.md and docs/how-it-works.md say of the package's layout is what the tree holds,
and every module says in its first lines what it does."""

from __future__ import annotations

import ast
import re

import tomllib
from documented.blocks import ROOT

PACKAGE = ROOT / "easyedit_mend_parallel"
LONGEST = 350
"""Lines of a module, at most (CONTRIBUTING.md)."""
WAY_OF_AN_EDIT = (
    "forward/requests.py",
    "forward/batch.py",
    "forward/calling.py",
    "forward/capture.py",
    "method/hypernetwork.py",
    "method/edited_forward.py",
    "method/preserved_text.py",
    "method/least_squares.py",
    "method/mend.py",
    "weights/target.py",
    "weights/placement.py",
    "weights/update.py",
    "weights/stores/",
    "weights/ledger.py",
    "edits/proposing.py",
    "edits/result.py",
    "editor.py",
)
"""What `MendParallel.edit` runs through, in order."""


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """The text of a page from a heading of the second level to the next one."""
    return page(name).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def layers_written() -> list[str]:
    """The first column of the layout in CONTRIBUTING.md, from the lowest layer up."""
    return re.findall(r"^\| `([\w/.]+)` \|", section("CONTRIBUTING.md", "Layout"), re.MULTILINE)


def layers_of_the_tree() -> set[str]:
    """Folders and modules at the package's top, written as CONTRIBUTING.md writes them."""
    found = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    return found | {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}


def missing(text: str) -> list[str]:
    """Paths of modules and folders in `text` that are neither in the package nor in the root."""
    named = re.findall(r"`([\w/]+(?:\.py|/))(?:::\w+)?`", text)
    return [path for path in named if not any((root / path).exists() for root in (PACKAGE, ROOT))]


def test_the_layout_in_contributing_is_the_tree() -> None:
    assert set(layers_written()) == layers_of_the_tree()


def test_the_layout_in_contributing_has_the_order_that_lint_checks() -> None:
    [contract] = [
        contract
        for contract in tomllib.loads(page("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    written = [re.sub(r"\.py$|/$", "", layer) for layer in layers_written()]
    assert written == contract["layers"][::-1]


def test_the_top_of_the_package_can_be_taken_in_at_a_glance() -> None:
    assert len(layers_of_the_tree()) <= 14


def test_how_it_works_names_every_module_on_the_way_of_an_edit_and_what_it_names_is_there() -> None:
    text = page("docs/how-it-works.md")

    assert [path for path in WAY_OF_AN_EDIT if f"`{path}`" not in text] == []
    assert missing(text) == []


def test_what_contributing_names_is_there() -> None:
    assert missing(page("CONTRIBUTING.md")) == []


def test_a_path_that_is_not_there_is_seen() -> None:
    assert missing("`weights/ledger.py`, `weights/no_ledger.py` and `stores/`") == [
        "weights/no_ledger.py",
        "stores/",
    ]


def test_every_module_opens_with_what_it_does() -> None:
    silent = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_no_module_is_longer_than_a_reader_takes_in_at_once() -> None:
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}
