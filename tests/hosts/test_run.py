"""`mend-parallel run`: a script in the form of EasyEdit's examples, which knows EasyEdit only, runs
this method with the options of the command, whichever name its yaml file has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host_toys import Toy, mixed_device_map, save_toy, write_yaml
from typer.testing import CliRunner

from easyedit_mend_parallel.cli.app import app

SCRIPT = """
import argparse
import json

from easyeditor import BaseEditor, MENDHyperParams, ROMEHyperParams

parser = argparse.ArgumentParser()
parser.add_argument("--editing_method", required=True)
parser.add_argument("--hparams_dir", required=True)
parser.add_argument("--keep", default="{}")
args = parser.parse_args()
if args.editing_method == "MEND":
    editing_hparams = MENDHyperParams
elif args.editing_method == "ROME":
    editing_hparams = ROMEHyperParams
else:
    raise NotImplementedError
hparams = editing_hparams.from_hparams(args.hparams_dir)
editor = BaseEditor.from_hparams(hparams)
name = hparams.inner_params[0]
before = editor.model.get_parameter(name).detach().clone()
metrics, model, weights_copy = editor.edit(
    prompts=["the capital of France is"],
    target_new=["Rome"],
    ground_truth=["Paris"],
    **json.loads(args.keep),
)
now = model.get_parameter(name)
print()
print(json.dumps({
    "class": type(hparams).__name__,
    "executor": type(editor.apply_algo.__self__).__module__,
    "dtype": str(now.dtype),
    "written": not now.equal(before),
    "metrics": len(metrics),
    "placed": hasattr(model, "hf_device_map"),
}))
"""


def run(folder: Path, *options: str, kept: str = "{}", **values: Any) -> dict[str, Any]:
    path, toy = save_toy(folder)
    fields = Toy.fields(toy, model_name=path, **values)
    write_yaml(folder / "edit.yaml", **fields)
    script = folder / "run_like_an_example.py"
    script.write_text(SCRIPT)
    arguments = ["--editing_method", "MEND", "--hparams_dir", str(folder / "edit"), "--keep", kept]
    result = CliRunner().invoke(app, ["run", *options, str(script), *arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("name", "hparams_class"),
    [("MEND", "MENDHyperParams"), ("MEND_PARALLEL", "MENDParallelHyperParams")],
)
def test_an_example_script_runs_this_method_with_the_commands_options(
    tmp_path: Path, name: str, hparams_class: str
) -> None:
    own = {"alg_name": name, "alg": name}
    options = ["--device-map", json.dumps(mixed_device_map()), "--dtype", "bfloat16"]
    options += ["--set", f"model_kwargs={{offload_folder: {tmp_path / 'disk'}}}"]
    found = run(tmp_path, *options, **own)

    assert found["class"] == hparams_class
    assert found["executor"] == "easyedit_mend_parallel.easyedit.method"
    assert (found["dtype"], found["placed"], found["metrics"]) == ("torch.bfloat16", True, 1)


@pytest.mark.parametrize("name", ["MEND", "MEND_PARALLEL"])
def test_any_hyperparameter_can_be_set(tmp_path: Path, name: str) -> None:
    found = run(
        tmp_path,
        "--set",
        "apply=output",
        kept=json.dumps({"sequential_edit": True}),
        alg_name=name,
        alg=name,
    )

    assert found["written"] is False
