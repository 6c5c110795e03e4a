"""The code blocks of a Markdown page, each with the marks that its page puts before it.

A mark is an HTML comment on the lines before a block, which no reader sees:

    <!-- long -->      not run but checked: it takes minutes, installs, or starts the tests
    <!-- gpu -->       the same: it needs a GPU
    <!-- weights -->   the same: it needs weights that no package ships
    <!-- output -->    what the blocks before it print, to the letter
    <!-- before: ... -->   Python that is run before the block, in the page's namespace
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
NOT_RUN = ("long", "gpu", "weights")
MARKS = (*NOT_RUN, "output")
LANGUAGES = ("python", "sh", "yaml", "toml", "json", "diff", "text", "")


@dataclass(frozen=True)
class Block:
    """One fenced block: `line` is its first line of code, counted from 1."""

    page: Path
    line: int
    language: str
    code: str
    marks: tuple[str, ...] = ()
    before: str = ""
    before_line: int = 0

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "sh") and not set(self.marks) & set(NOT_RUN)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page that a reader sees: those of the root and of docs/, relative to the root."""
    found = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    found += [path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts]
    return sorted(path.relative_to(ROOT) for path in found)


def blocks(page: Path) -> list[Block]:
    """The blocks of `page` (relative to the root, or absolute), in order.

    Raises ValueError for a comment before a block that is no mark, or a language not known here.
    """
    found = []
    comments: list[tuple[int, str]] = []
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            comments += [
                (line + token.content[: comment.start(1)].count("\n"), comment[1])
                for comment in re.finditer(r"<!--(.*?)-->", token.content, re.DOTALL)
            ]
        elif token.type == "fence" and not token.info.startswith("{"):
            found.append(_block(page, line + 1, token.info.strip(), token.content, comments))
            comments = []
        else:
            comments = []
    return found


def _block(
    page: Path, line: int, language: str, code: str, comments: list[tuple[int, str]]
) -> Block:
    marks, before, before_line = [], "", 0
    for start, text in comments:
        if text.strip().startswith("before:"):
            before, before_line = text.split("before:", 1)[1].strip(), start
            before_line += text.split(before)[0].count("\n") if before else 0
        elif text.strip() in MARKS:
            marks.append(text.strip())
        else:
            raise ValueError(f"{page}:{start}: {text.strip()!r} is no mark ({', '.join(MARKS)})")
    if language not in LANGUAGES:
        raise ValueError(f"{page}:{line}: no test knows what to do with {language!r}")
    return Block(page, line, language, code, tuple(marks), before, before_line)
