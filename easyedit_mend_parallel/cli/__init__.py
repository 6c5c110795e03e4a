"""The command line, `mend-parallel`: one file for each command, and no arithmetic.

A command reads its arguments, calls the package, and prints the result. It uses only the
public parts of the package's other modules.
"""

from __future__ import annotations

from easyedit_mend_parallel.cli.app import main

__all__ = ["main"]
