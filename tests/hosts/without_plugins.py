"""EasyEdit's own MEND where this package is not installed: neither found nor importable.

Started by test_upstream.py, with an EasyEdit as it is and with one that looks for plugins, in a
folder with mend.yaml; prints what it found as JSON, to be compared.
"""

import hashlib
import importlib.metadata
import json
import sys

PACKAGE = "easyedit_mend_parallel"
entry_points = importlib.metadata.entry_points


def others(**selection):
    found = entry_points(**selection)
    if selection.get("group") != "easyedit":
        return found
    return [one for one in found if PACKAGE not in one.value]


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"{name} is hidden here", name=name)


importlib.metadata.entry_points = others
sys.meta_path.insert(0, Hidden())

from easyeditor import BaseEditor, MENDHyperParams  # noqa: E402
from easyeditor.editors.batch_editor import BatchEditor  # noqa: E402
from easyeditor.util.alg_dict import ALG_DICT  # noqa: E402
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT  # noqa: E402

try:
    MENDHyperParams.from_hparams("other.yaml")
    refusal = None
except ValueError as error:
    refusal = str(error)

editor = BaseEditor.from_hparams(MENDHyperParams.from_hparams("mend.yaml"))
metrics, model, _ = editor.edit(
    prompts=["the capital of France is"],
    target_new=["Rome and Oslo"],
    ground_truth=["Paris"],
    sequential_edit=True,
)
bits = hashlib.sha256()
for _, weight in sorted(model.named_parameters()):
    bits.update(weight.detach().numpy().tobytes())

print()
print(
    json.dumps(
        {
            "weights": bits.hexdigest(),
            "post": metrics[0]["post"]["rewrite_acc"],
            "executor": type(editor.apply_algo.__self__).__module__,
            "methods": {name: BatchEditor.is_batchable_method(name) for name in ALG_DICT},
            "trained": sorted(ALG_TRAIN_DICT),
            "refusal": refusal,
            "hidden": PACKAGE not in sys.modules,
        },
        default=float,
    )
)
