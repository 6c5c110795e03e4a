"""Methods of installed packages, and the end of a training run. Needs no GPU and no weights.

python -m pytest tests/test_plugins.py
"""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from easyeditor.editors.batch_editor import BatchEditor
from easyeditor.models.mend import MENDHyperParams
from easyeditor.trainer.algs.local_nn import IDMLP
from easyeditor.trainer.EditTrainer import EditTrainer
from easyeditor.trainer.training_hparams import MENDTrainingHparams
from easyeditor.trainer.utils import formatted_timestamp, load_archive
from easyeditor.util.alg_dict import ALG_DICT
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT
from easyeditor.util.hparams import normalize_alg_name

plugins = sys.modules["easyeditor.util.plugins"]

PLUGIN = """
from types import SimpleNamespace

def apply_to_model(model, tok, requests, hparams, **kwargs):
    return model, {}

def editing_method(host):
    assert host.package.__name__ == "easyeditor"
    return SimpleNamespace(apply_to_model=apply_to_model, **OFFER)
"""


@pytest.fixture(autouse=True)
def registries():
    """Gives the registries back what they held."""
    kept = [(one, dict(one)) for one in (ALG_DICT, ALG_TRAIN_DICT, plugins.METHODS)]
    yield
    for one, before in kept:
        one.clear()
        one.update(before)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package that offers a method, and lets EasyEdit look for it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(module, source=PLUGIN, **offer):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(f"OFFER = {offer!r}\n{source}")
        about = tmp_path / f"{module}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[easyedit]\n{module} = {module}\n")
        for method in list(plugins.METHODS):  # of what is installed here besides
            ALG_DICT.pop(method, None)
            ALG_TRAIN_DICT.pop(method.upper(), None)
        plugins.METHODS.clear()
        plugins.find()

    return installed


def test_a_method_of_an_installed_package_is_found(install):
    install("plugin_found", name="FOUND")

    assert ALG_DICT["FOUND"].__module__ == "plugin_found"
    assert "FOUND" not in ALG_TRAIN_DICT


def test_methods_that_are_here_stay(install):
    before, trained = dict(ALG_DICT), dict(ALG_TRAIN_DICT)
    of_plugins = set(plugins.METHODS)

    install("plugin_besides", name="BESIDES")

    for name in set(before) - of_plugins:
        assert ALG_DICT[name] is before[name]
    for name in set(trained) - {one.upper() for one in of_plugins}:
        assert ALG_TRAIN_DICT[name] is trained[name]


def test_a_plugin_cannot_take_a_name_that_is_here(install, caplog):
    rome = ALG_DICT["ROME"]

    with caplog.at_level(logging.WARNING):
        install("plugin_taking", name="ROME")

    assert ALG_DICT["ROME"] is rome
    assert "plugin_taking" in caplog.text
    assert "'ROME'" in caplog.text


def test_a_plugin_that_fails_is_left_out_with_a_warning(install, caplog):
    with caplog.at_level(logging.WARNING):
        install("plugin_failing", source="raise ImportError('no such luck')")

    assert "plugin_failing" in caplog.text
    assert "no such luck" in caplog.text


def test_a_plugin_may_offer_nothing(install, caplog):
    before = dict(ALG_DICT)

    install("plugin_silent", source="def editing_method(host): return None")

    assert "plugin_silent" not in caplog.text
    assert set(ALG_DICT) <= set(before)


def test_what_trains_a_method_is_made_for_this_easyedit(install):
    made = "\nOFFER['trainable'] = lambda host: ('trains', host.package.__name__)\n"
    install("plugin_trained", source=PLUGIN + made, name="Trained")

    assert ALG_TRAIN_DICT["TRAINED"] == ("trains", "easyeditor")


@pytest.mark.parametrize(("like", "allowed"), [("MEND", True), ("ROME", False), (None, False)])
def test_a_method_edits_in_batches_where_the_one_does_that_it_behaves_like(install, like, allowed):
    install("plugin_in_batches", name="BATCHES", behaves_like=like)

    assert BatchEditor.is_batchable_method("BATCHES") is allowed
    assert BatchEditor.is_batchable_method("MEND") is True
    assert BatchEditor.is_batchable_method("ROME") is False


def test_a_method_reads_the_files_of_the_one_that_it_behaves_like(install):
    install("plugin_reading", name="READING", behaves_like="MEND")

    for config in ({"alg_name": "READING"}, {"alg_name": "READING", "alg": "READING"}):
        assert normalize_alg_name(dict(config), "MEND") == {"alg_name": "READING"}
    assert normalize_alg_name({"alg_name": "MEND"}, "MEND") == {"alg_name": "MEND"}
    for config in ({"alg_name": "ROME"}, {"alg_name": "READING", "alg": "ROME"}, {}):
        with pytest.raises(ValueError, match="MEND hparams"):
            normalize_alg_name(config, "MEND")
    with pytest.raises(ValueError, match="ROME hparams"):
        normalize_alg_name({"alg_name": "READING"}, "ROME")


def test_the_classes_of_hyperparameters_keep_the_plugins_name(install, tmp_path):
    install("plugin_named", name="NAMED", behaves_like="MEND")
    for hparams, name in ((MENDHyperParams, "alg_name"), (MENDTrainingHparams, "alg")):
        fields = dict.fromkeys(hparams.__dataclass_fields__)
        path = tmp_path / f"{name}.yaml"

        path.write_text(json.dumps({**fields, name: "NAMED"}))
        assert getattr(hparams.from_hparams(str(path)), name) == "NAMED"


# The end of a training run


class Toy(torch.nn.Linear):
    """A trainable of one layer, whose archive holds an object as MEND's holds a config."""

    def __init__(self):
        super().__init__(2, 1)

    def outer_parameters(self):
        return list(self.parameters())

    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(*args, **kwargs), "model_config": SimpleNamespace()}

    def load_state_dict(self, state, *args, **kwargs):
        state = {key: value for key, value in state.items() if key != "model_config"}
        return super().load_state_dict(state, *args, **kwargs)


class ToyTrainer(EditTrainer):
    def __init__(self, folder, **values):
        self.config = SimpleNamespace(
            **{
                "alg": "MEND", "batch_size": 1, "max_epochs": None, "max_iters": 4,
                "log_interval": 100, "val_interval": 100, "val_steps": 1, "final_eval": True,
                "early_stop_patience": 100, "early_stop_key": "loss", "eval_only": False,
                "debug": False, "save": False, "silent": True, "device": "cpu",
                "model_parallel": False, "results_dir": str(folder), "accumulate_bs": 1,
                "grad_clip": 1.0,
                **values,
            }
        )  # fmt: skip
        self.model = Toy()
        self.opt = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.lr_opt = None
        self.train_set = self.train_loader = self.val_loader = [torch.ones(1, 2)] * 8
        self.val_set = self.train_set
        self.save_path = str(folder / "archive")
        self.start_time = formatted_timestamp()

    def edit_step(self, batch, training):
        loss = self.model(batch).square().sum()
        if training:
            loss.backward()
        return loss, loss, loss, loss, {"loss": loss.item()}

    def validate(self, steps=None, log=False):
        return {"loss": self.edit_step(self.val_set[0], False)[0].item()}


@pytest.mark.parametrize("model_parallel", [False, True])
def test_a_run_shorter_than_val_interval_ends_evaluated(tmp_path, model_parallel):
    trainer = ToyTrainer(tmp_path, model_parallel=model_parallel)

    trainer.run()

    assert json.loads((tmp_path / "results.json").read_text())["results"]["loss"] >= 0
    archive, _ = load_archive(trainer.save_path)  # going on from it
    assert archive["model"]["weight"].equal(trainer.model.weight)


def test_the_evaluation_is_of_this_run_and_not_of_an_older_archive(tmp_path):
    ToyTrainer(tmp_path).run()
    trainer = ToyTrainer(tmp_path, max_iters=6)

    trainer.run()

    assert load_archive(trainer.save_path)[0]["step"] == 6


def test_what_a_longer_run_saved_is_what_is_evaluated(tmp_path):
    trainer = ToyTrainer(tmp_path, val_interval=2)

    trainer.run()

    archive, _ = load_archive(trainer.save_path)
    assert archive["step"] == 2
    assert archive["model"]["weight"].equal(trainer.model.weight)


def test_the_network_that_training_starts_from_has_a_gradient():
    network = IDMLP(8, 8, 8, 1, init="id", act="relu", rank=3, n_modes=2)
    x = torch.randn(5, 8)

    made = network(x, mode=0)
    (made * x).sum().backward()

    assert torch.equal(made, x)
    assert all(layer.bias.grad.abs().sum() > 0 for layer in network.layers)
