"""A user's script that names MEND_PARALLEL in EasyEdit's own yaml files, and imports EasyEdit only.

Started by test_upstream.py in a folder with edit.yaml, batch.yaml, train.yaml and zsre.json; prints
what it found as JSON, and leaves the edited weights in edited.pt.
"""

import gc
import json
import sys

import torch
from easyeditor import BaseEditor, EditTrainer, MENDHyperParams, MENDTrainingHparams, ZsreDataset

ONE = {
    "prompts": ["the capital of France is"],
    "target_new": ["Rome and Oslo"],
    "ground_truth": ["Paris"],
}
TWO = {
    "prompts": [*ONE["prompts"], "who wrote Hamlet"],
    "target_new": [*ONE["target_new"], "Shakespeare"],
    "ground_truth": ["Paris", "a cat"],
}


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def changed(model, before):
    return sorted(name for name, one in weights(model).items() if not one.equal(before[name]))


found = {}

hparams = MENDHyperParams.from_hparams("edit.yaml")
editor = BaseEditor.from_hparams(hparams)
before = weights(editor.model)
metrics, model, weights_copy = editor.edit(**ONE, sequential_edit=True)
found |= {"alg_name": hparams.alg_name, "metrics": len(metrics), "edited": changed(model, before)}
torch.save({name: weights(model)[name] for name in hparams.inner_params}, "edited.pt")
weights_copy()
found["after_undo"] = changed(model, before)
editor.edit(**ONE)
found["after_a_measured_edit"] = changed(editor.model, before)

editor = BaseEditor.from_hparams(MENDHyperParams.from_hparams("batch.yaml"))
before = weights(editor.model)
metrics, model, weights_copy = editor.batch_edit(**TWO, sequential_edit=True)
found |= {"batch_metrics": len(metrics), "batch_edited": changed(model, before)}
weights_copy()
found["after_batch_undo"] = changed(model, before)

hparams = MENDTrainingHparams.from_hparams("train.yaml")
records = ZsreDataset("zsre.json", config=hparams)
trainer = EditTrainer(config=hparams, train_set=records, val_set=records)
trainer.run()
with open("results/results.json") as file:
    found["results"] = json.load(file)["results"]
found |= {"alg": hparams.alg, "steps": trainer.model.steps, "saved": trainer.save_path}

executor = type(editor.apply_algo.__self__)
found["executor"] = f"{executor.__module__}.{executor.__name__}"
found["executors"] = sum(type(one) is executor for one in gc.get_objects())
batch_editor = sys.modules["easyeditor.editors.batch_editor"].BatchEditor
found["wrapped"] = hasattr(batch_editor.is_batchable_method, "__wrapped__")
print()
print(json.dumps(found))
