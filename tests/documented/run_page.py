"""Runs the blocks of one page in order, Python in one namespace, in the folder it is started in.

    python -m documented.run_page README.md

Started in a process of its own for each page: what a page imports first is the page's affair.
"""

from __future__ import annotations

import io
import subprocess
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from documented.blocks import Block, blocks

LOST_IS_FINE = 'mend-parallel() { command mend-parallel "$@" || [ $? -eq 4 ]; }\n'
"""Random weights need not hold their edits, which `mend-parallel edit` says by exit code 4."""


def run(page: Path) -> None:
    """Raises what a block raises, or AssertionError where it prints something else than said."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in blocks(page):
        with redirect_stdout(printed):
            if block.before:
                execute(block.before, block.page, block.before_line, namespace)
            if "output" in block.marks:
                said, printed_so_far = block.code.strip(), printed.getvalue().strip()
                assert said == printed_so_far, f"{block.where}: it prints\n{printed_so_far}"
            elif block.is_run:
                print(f"{block.where}", file=sys.stderr, flush=True)
                printed.seek(0)
                printed.truncate()
                run_block(block, namespace)


def run_block(block: Block, namespace: dict[str, Any]) -> None:
    if block.language == "python":
        execute(block.code, block.page, block.line, namespace)
        return
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", LOST_IS_FINE + block.code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="")
    assert done.returncode == 0, f"{block.where}: exit code {done.returncode}\n{done.stdout}"


def execute(code: str, page: Path, line: int, namespace: dict[str, Any]) -> None:
    """Run `code`, whose tracebacks name the page and the line there."""
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
