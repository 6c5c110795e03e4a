"""Calls one function of a script, and writes what it returns first to results.json.

python call.py SCRIPT FUNCTION
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path


def main() -> None:
    script, name = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    returned = getattr(module, name)()
    if returned is not None:
        Path("results.json").write_text(json.dumps(returned[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
