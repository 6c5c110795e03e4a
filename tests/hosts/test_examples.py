"""Example scripts of EasyEdit's repository, as they are, run MEND_PARALLEL to their end: one that
edits facts of ZsRE, and that of KnowEdit; on one device and with a device map.
scripts/easyedit_examples makes the table of all of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import nltk
import pytest
from host_toys import TODAY, Toy, mixed_device_map, save_toy, write_yaml
from typer.testing import CliRunner

from easyedit_mend_parallel.cli.app import app

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "easyedit_examples"))

from material import FACTS, knowedit_record, zsre_record

EXAMPLES = Path(os.environ.get("EASYEDIT_HOME", "")) / "examples"
pytestmark = pytest.mark.skipif(
    not TODAY or not EXAMPLES.is_dir(), reason="the scripts are in EasyEdit's repository"
)
ZSRE = ["run_AlphaEdit_editing.py", "--data_type=ZsRE", "--data_dir=.", "--output_dir=out"]
KNOWEDIT = ["run_knowedit_llama2.py", "--datatype=zsre", "--data_dir=knowedit.json"]
KNOWEDIT += ["--metrics_save_dir=out"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, a yaml file that names MEND_PARALLEL, and data in the scripts' formats."""
    path, toy = save_toy(tmp_path)
    fields = Toy.fields(toy, model_name=path, alg_name="MEND_PARALLEL")
    write_yaml(tmp_path / "my.yaml", **fields)
    # KnowEdit's script ends in an error of its own where records have locality.
    records = [knowedit_record(fact) | {"locality": {}} for fact in FACTS[:1]]
    (tmp_path / "knowedit.json").write_text(json.dumps(records))
    (tmp_path / "zsre_mend_eval.json").write_text(json.dumps([*map(zsre_record, FACTS[:1])]))
    monkeypatch.setattr(nltk, "word_tokenize", nltk.wordpunct_tokenize)  # the other is a download
    return tmp_path


def run(script: str, arguments: list[str], *options: str) -> list[dict[str, Any]]:
    """What the script wrote, run by `mend-parallel run`."""
    method = ["--editing_method=MEND", "--hparams_dir=my.yaml"]
    words = ["run", "--set", "on_worse=ignore", *options, str(EXAMPLES / script)]
    result = CliRunner().invoke(app, [*words, *method, *arguments])
    assert result.exit_code == 0, result.output
    (file,) = Path("out").glob("*.json")
    found: list[dict[str, Any]] = json.loads(file.read_text())
    file.unlink()
    return found


@pytest.mark.parametrize("call", [ZSRE, KNOWEDIT], ids=["ZsRE", "KnowEdit"])
def test_an_example_script_runs_to_its_end_on_one_device_and_on_a_device_map(
    folder: Path, call: list[str]
) -> None:
    script, *arguments = call
    placed = ["--device-map", json.dumps(mixed_device_map())]
    placed += ["--set", f"model_kwargs={{offload_folder: {folder / 'disk'}}}"]

    on_one = run(script, arguments)
    on_two = run(script, arguments, *placed)

    assert len(on_one) == len(on_two) == 1
    for one, two in zip(on_one, on_two, strict=True):
        assert {"pre", "post", "requested_rewrite"} <= one.keys()
        for name in ("rewrite_acc", "rephrase_acc", "locality", "portability"):
            assert one["post"].get(name) == two["post"].get(name)
