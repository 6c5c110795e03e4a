"""What has to be done before EasyEdit is imported, done in a process of its own.

`report_of` runs one of the functions below there and returns what it prints as its last line. Not
imported from here: EasyEdit, which each function imports when it is time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
SECOND_PLUGIN = '''
"""A plugin of another package: it offers FORGET, which empties the model's head."""

import torch

from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, hookimpl


@torch.no_grad()
def apply_to_model(model, tok, requests, hparams, return_orig_weights=False, **_):
    name = "lm_head.weight"
    weight = model.get_parameter(name)
    before = {name: weight.detach().clone()}
    weight.zero_()
    return model, before if return_orig_weights else {}


@hookimpl
def editing_method(host):
    assert host.package.__name__ == "easyeditor"
    return EditingMethod("FORGET", apply_to_model, behaves_like="FT")
'''


class Started:
    """A process that was started, and the report that it will print.

    `paths` are put before where it looks for modules; `python` is another environment's.
    """

    def __init__(
        self, function: str, folder: Path, *paths: Path, python: Path | str = sys.executable
    ) -> None:
        path = [*map(str, paths), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        if os.environ["EASYEDIT_MEND_PARALLEL_HOST"] == "clone":
            path.insert(0, os.environ["EASYEDIT_HOME"])
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", f"import fresh_process as f; f.{function}()"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        output, _ = self._process.communicate(timeout=300)
        assert self._process.returncode == 0, output[-5000:]
        report: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return report


def install_second_plugin(folder: Path) -> None:
    """What pip leaves of a package: its module, and the metadata with its entry point."""
    (folder / "forgetful.py").write_text(SECOND_PLUGIN, encoding="utf-8")
    metadata = folder / "forgetful-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[easyedit]\nforget = forgetful\n")


def nothing(model: Any, *_args: Any, **_kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A method that leaves the model as it is."""
    return model, {}


def plugin(name: str, apply_to_model: Any = nothing, **options: Any) -> ModuleType:
    """A plugin as a module object, which offers the method `name`, or None without a name."""
    from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, hookimpl

    module = ModuleType(f"plugin_of_{name}")

    @hookimpl
    def editing_method(host: Any) -> Any:
        return EditingMethod(name, apply_to_model, **options) if name else None

    module.editing_method = editing_method  # type: ignore[attr-defined]
    return module


def report(**found: Any) -> None:
    print()
    print(json.dumps(found))


def with_plugins_and_replacement() -> None:
    """Two more plugins, and `replace_mend`, before EasyEdit is imported; then all is run there."""
    from easyedit_mend_parallel import replace_mend
    from easyedit_mend_parallel.plugins.manager import plugin_manager

    heavy = ("easyeditor", "transformers.modeling_utils")
    early = [name for name in heavy if name in sys.modules]
    seen: list[Any] = []

    def watch(model: Any, tok: Any, requests: Any, hparams: Any, **_: Any) -> Any:
        seen.append([request["prompt"] for request in requests])
        return model, {}

    plugin_manager().register(plugin("WATCH", watch))
    plugin_manager().register(plugin(""))
    replace_mend(model_kwargs={"dtype": "bfloat16"})

    import easyeditor  # noqa: F401
    from easyeditor import BaseEditor
    from easyeditor.util.alg_dict import ALG_DICT
    from host_toys import KEPT, ONE, TWO, UNDONE, make_toy, mend_fields, save_toy

    class Hparams:
        def __init__(self, name: str, **values: Any) -> None:
            vars(self).update(mend_fields(**values), alg_name=name)

    folder = Path.cwd()
    found: dict[str, Any] = {"imported_by_ours": early, "methods": sorted(ALG_DICT)}
    toy = make_toy(folder)
    (folder / "saved").mkdir()
    path, _ = save_toy(folder / "saved")

    watching = BaseEditor(Hparams("WATCH", model_name=toy.pair))
    metrics, _, _ = watching.edit(**ONE, **KEPT)
    found["watched"] = seen
    found["watched_metrics"] = len(metrics)
    try:
        watching.batch_edit(**TWO)
        found["watch_in_batches"] = True
    except AssertionError:
        found["watch_in_batches"] = False

    forgetting = BaseEditor(Hparams("FORGET", model_name=toy.pair, batch_size=2))
    _, _, weights_copy = forgetting.batch_edit(**TWO, **KEPT)
    found["forgot"] = sorted(weights_copy)
    toy.model.lm_head.weight.data.copy_(toy.before["lm_head.weight"])
    forgetting = BaseEditor(Hparams("FORGET", model_name=toy.pair))
    forgetting.edit(**ONE, **UNDONE)
    found["forgot_and_restored"] = sorted(toy.changed())

    parallel = BaseEditor(toy.hparams(folder))
    parallel.edit(**ONE, **KEPT)
    found["edited"] = sorted(toy.changed())
    found["targets"] = sorted(toy.names)

    mend = BaseEditor(Hparams("MEND", model_name=path))
    found["mend"] = type(getattr(mend.apply_algo, "__self__", None)).__name__
    found["mend_dtype"] = str(mend.model.dtype)
    report(**found, **_names_that_left())


def with_the_example() -> None:
    """The example of docs/plugins.md, which is installed: its method, and its store.

    It is imported after EasyEdit where that is possible, else before (the release).
    """
    if os.environ["EASYEDIT_MEND_PARALLEL_HOST"] == "clone":
        import easyeditor  # noqa: F401
    from easyedit_gradient_steps import GradientStepsHparams

    folder = Path.cwd()
    from easyeditor import BaseEditor
    from host_toys import KEPT, ONE, TWO, UNDONE, make_toy

    toy = make_toy(folder)
    tempfile.tempdir = str(folder)

    def editor(**values: Any) -> Any:
        fields = {"model_name": toy.pair, "inner_params": toy.names, "device": "cpu"}
        return BaseEditor.from_hparams(GradientStepsHparams(**fields, rate=0.2, steps=40, **values))

    found: dict[str, Any] = {"targets": sorted(toy.names)}
    once = editor()
    found["method"] = once.apply_algo.__module__
    metrics, _, _ = once.edit(**ONE, **UNDONE)
    found["measured"] = sorted(toy.changed())
    found |= {phase: metrics[0][phase]["rewrite_acc"][0] for phase in ("pre", "post")}
    requests = [{"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}]
    _, weights_copy = once.apply_algo(
        toy.model, toy.tokenizer, requests, once.hparams, return_orig_weights=True
    )
    found["kept"] = sorted(toy.changed())
    weights_copy()
    found["undone"] = sorted(toy.changed())
    metrics, _, _ = editor(batch_size=2).batch_edit(**TWO, **UNDONE)
    found["batch"] = [one["post"]["rewrite_acc"][0] for one in metrics]

    mend = BaseEditor.from_hparams(toy.hparams(folder))
    os.environ["EASYEDIT_BACKUPS"] = "disk"
    found["files_before"] = len(list(folder.rglob("*.safetensors")))
    _, _, weights_copy = mend.edit(**ONE, **KEPT)
    found["files"] = len(list(folder.rglob("*.safetensors")))
    weights_copy()
    found["after_mend"] = sorted(toy.changed())
    report(**found)


def with_a_name_that_is_taken() -> None:
    """A plugin that offers one of EasyEdit's own methods, before EasyEdit is imported."""
    from easyedit_mend_parallel import PluginError
    from easyedit_mend_parallel.plugins.manager import plugin_manager

    plugin_manager().register(plugin("ROME"))
    try:
        import easyeditor  # noqa: F401
    except PluginError as error:
        report(error=str(error))
    else:
        report(error=None)


def without_this_package() -> None:
    """EasyEdit imported as it is."""
    try:
        import easyeditor  # noqa: F401
    except ImportError as error:
        report(error=str(error))
    else:
        report(error=None)


def _names_that_left() -> dict[str, Any]:
    """What the names that the early release misses do now, and which transformers has elsewhere."""
    from transformers import modeling_utils, pytorch_utils

    from easyedit_mend_parallel import MendParallelError
    from easyedit_mend_parallel.easyedit.early_release import GONE

    answers = {}
    for name in GONE:
        try:
            getattr(modeling_utils, name)()
        except MendParallelError as error:
            answers[name] = str(error)
        except TypeError:  # transformers' own, called without its arguments
            answers[name] = "works"
        except AttributeError:
            answers[name] = "missing"
    elsewhere = [name for name in GONE if hasattr(pytorch_utils, name)]
    return {"names_that_left": answers, "names_elsewhere": elsewhere}
