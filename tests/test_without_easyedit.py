"""The package works where EasyEdit is not: importing it neither needs EasyEdit nor imports it, nor
transformers' models, and an edit runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "easyeditor":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
"""
IMPORT = """
import json, sys
import easyedit_mend_parallel
heavy = [n for n in ("easyeditor", "transformers.modeling_utils") if n in sys.modules]
"""
EDIT = """
import toys
from easyedit_mend_parallel import MendParallel, replace_mend, restore_mend

replace_mend()
restore_mend()
model, tokenizer = toys.toy_model("llama"), toys.toy_tokenizer()
network = toys.toy_network(model, tokenizer)
before = toys.weights(model)
hparams = toys.toy_hparams(toys.toy_targets(model))
result = MendParallel(model, tokenizer, hparams, network=network).edit(toys.REQUEST)
now = toys.weights(model)
edited = [name for name in before if not toys.same_bits(before[name], now[name])]
result.rollback()
toys.assert_unchanged(model, before)
assert "easyeditor" not in sys.modules
print(json.dumps({"heavy": heavy, "edited": edited == hparams.inner_params}))
"""
REPORT = """
print(json.dumps({"heavy": heavy, "names": dir(easyedit_mend_parallel)}))
"""


def run(folder: Path, *code: str) -> dict[str, Any]:
    """What the code prints, in a process of its own that finds the tests' toys."""
    start = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + "".join(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-5000:]
    printed: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return printed


@pytest.mark.parametrize("before", ["", BLOCKED], ids=["easyedit_is_there", "easyedit_is_not"])
def test_importing_the_package_imports_neither_easyedit_nor_models(
    tmp_path: Path, before: str
) -> None:
    printed = run(tmp_path, before, IMPORT, REPORT)

    assert printed["heavy"] == []
    assert set(printed["names"]) >= {"MendParallel", "MENDParallelHyperParams", "replace_mend"}
    assert list(tmp_path.iterdir()) == []


def test_an_edit_runs_and_is_undone_without_easyedit(tmp_path: Path) -> None:
    assert run(tmp_path, BLOCKED, IMPORT, EDIT) == {"heavy": [], "edited": True}
