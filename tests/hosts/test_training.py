"""MEND_PARALLEL in EasyEdit's own EditTrainer: a run ends, goes on, and leaves an archive that
everybody reads; its losses and statistics are EasyEdit's; a run that trains nothing is an error.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from easyeditor import BaseEditor, EditTrainer, MENDTrainingHparams, MultimodalTrainer, ZsreDataset
from easyeditor.trainer.losses import kl_loc_loss
from easyeditor.util.alg_dict import ALG_DICT
from easyeditor.util.alg_train_dict import ALG_TRAIN_DICT
from host_toys import mend_fields
from torch import Tensor, nn
from toy_facts import FACTS, ZSRE_RECORDS

from easyedit_mend_parallel import (
    HparamsError,
    MendParallel,
    MENDParallelHyperParams,
    MENDParallelTrainingHparams,
    TrainingError,
    load_archive,
    replace_mend,
    restore_mend,
    save_archive,
)
from easyedit_mend_parallel.easyedit import trainable as bridge
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere

TODAY = hasattr(BaseEditor, "normal_edit")
ORIGINAL = ALG_TRAIN_DICT["MEND"]
OURS = ALG_TRAIN_DICT["MEND_PARALLEL"]
FAMILY = "llama" if TODAY else "gpt2"
"""What EasyEdit's own MEND can be called with: the release cannot clone a Llama of today."""
STATISTICS = ("u_mean", "v_mean", "u_std", "v_std", "u_s", "v_s", "k")


class Case:
    """A toy model saved where EasyEdit's trainer loads it, records, and hyperparameters."""

    def __init__(self, folder: Path, family: str = "llama") -> None:
        self.folder = folder
        self.model = toys.toy_model(family)
        self.path = folder / f"tiny-{family}"
        self.model.save_pretrained(self.path)
        toys.toy_tokenizer(side="left").save_pretrained(self.path)
        self.records = folder / "zsre.json"
        self.records.write_text(json.dumps(ZSRE_RECORDS), encoding="utf-8")

    def fields(self, **values: Any) -> dict[str, Any]:
        """A training file's fields, as both EasyEdits and this package read them."""
        fields = mend_fields(
            alg="MEND_PARALLEL",
            model_name=str(self.path),
            tokenizer_name=str(self.path),
            model_class=type(self.model).__name__,
            tokenizer_class="PreTrainedTokenizerFast",
            inner_params=toys.toy_targets(self.model),
            lr=1e-3,
            edit_lr=-1e-2,
            lr_lr=1e-3,
            results_dir=str(self.folder / "results"),
            log_interval=100,
            eval_log_interval=100,
            final_eval=True,
            val_interval=1000,
            early_stop_patience=20000,
            val_batch_size=2,
            val_steps=2,
            max_iters=7,
        )
        for name in ("alg_name", "lr_scale", "max_length"):  # no fields of EasyEdit's for training
            del fields[name]
        return fields | values

    def hparams(self, **values: Any) -> MENDParallelTrainingHparams:
        return MENDParallelTrainingHparams.from_values(self.fields(**values))

    def trainer(self, hparams: Any = None, **values: Any) -> Any:
        hparams = hparams or self.hparams(**values)
        records = ZsreDataset(str(self.records), config=hparams)
        torch.manual_seed(0)
        return EditTrainer(config=hparams, train_set=records, val_set=records)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def state_of(trainable: Any) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone()
        for name, tensor in trainable.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def counts(state: dict[str, Tensor]) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in state.items() if name.endswith(".k")}


# A run


def test_a_run_shorter_than_val_interval_ends_evaluated_with_every_tensor_moved(case: Case) -> None:
    trainer = case.trainer()
    before = state_of(trainer.model)
    base = toys.weights(trainer.model.model)

    trainer.run()

    assert trainer.model.steps == 6
    assert trainer.global_iter == 7
    after = state_of(trainer.model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(tensor.isfinite().all() for tensor in after.values())
    results = json.loads((case.folder / "results/results.json").read_text())["results"]
    assert results["loss/total_val"] == pytest.approx(results["loss/total_val"])  # no NaN
    assert results["memory/alloc_max_val"] == 0  # without CUDA
    toys.assert_unchanged(trainer.model.model, base)
    assert trainer.config.final_eval is True
    assert trainer.config.max_iters == 7


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gptj", "t5"])
def test_a_model_of_another_family_is_trained_too(tmp_path: Path, family: str) -> None:
    known = {} if family != "mistral" else {"model_class": "AutoModelForCausalLM"}
    trainer = Case(tmp_path, family).trainer(batch_size=2, max_iters=5, **known)
    before = state_of(trainer.model)

    trainer.run()

    after = state_of(trainer.model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_the_final_evaluation_is_of_what_this_run_trained_and_not_of_an_older_archive(
    case: Case,
) -> None:
    case.trainer().run()
    trainer = case.trainer(lr=3e-3)

    trainer.run()

    saved = load_archive(trainer.save_path).state
    for name, tensor in state_of(trainer.model).items():
        assert torch.equal(saved[name], tensor)
    assert Path(trainer.save_path + ".bk").is_file()


def test_a_run_longer_than_val_interval_saves_as_easyedit_does(case: Case) -> None:
    trainer = case.trainer(val_interval=3, early_stop_key="loss/total_edit_val")

    trainer.run()

    content = torch.load(trainer.save_path, weights_only=True)
    assert content["step"] in (3, 6)
    assert content["val_stats"]["loss/total_edit_val"] > 0
    assert trainer.global_iter == 7


def test_a_run_without_final_evaluation_is_saved_too(case: Case) -> None:
    trainer = case.trainer(final_eval=False)

    trainer.run()

    assert load_archive(trainer.save_path).has_optimizer
    assert not (case.folder / "results/results.json").exists()


def test_a_run_of_batches_accumulates_clips_and_ends(case: Case) -> None:
    trainer = case.trainer(batch_size=4, accumulate_bs=2, max_iters=9, grad_clip=0.5)
    before = state_of(trainer.model)

    trainer.run()

    after = state_of(trainer.model)
    assert not torch.equal(before["edit_lrs"], after["edit_lrs"])


def test_the_archive_is_read_with_weights_only_by_this_package_and_by_easyedits_executor(
    tmp_path: Path,
) -> None:
    case = Case(tmp_path)
    trainer = case.trainer(edit_lr=-0.1)
    trainer.run()
    content = torch.load(trainer.save_path, weights_only=True)
    assert isinstance(content["model"]["model_config"], dict)
    archive = load_archive(trainer.save_path)
    assert set(archive.state) == set(state_of(trainer.model))

    own = {"archive": trainer.save_path, "alg_name": "MEND", "alg": "MEND", "lr_scale": 1.0}
    fields = case.fields(**own)
    known = {field.name for field in MENDParallelHyperParams.__dataclass_fields__.values()}
    ours = MENDParallelHyperParams.from_values({k: v for k, v in fields.items() if k in known})
    ours.on_worse = "ignore"
    request = {"prompt": FACTS[0][0], "target_new": FACTS[0][1]}
    tokenizer = toys.toy_tokenizer(side="left")
    edited = copy.deepcopy(case.model)
    MendParallel(edited, tokenizer, ours).edit(request)

    theirs = copy.deepcopy(case.model)
    hparams = type("Hparams", (), fields)()
    with on_this_machine():
        ALG_DICT["MEND"].__self__.__class__().apply_to_model(theirs, tokenizer, [request], hparams)

    for name in toys.toy_targets(case.model):
        plain = case.model.get_parameter(name)
        change = theirs.get_parameter(name) - plain
        assert change.abs().max() > 0
        if TODAY:  # the release normalises an edit with the edit's own statistics
            bound = 1e-4 * change.abs().max() + 1e-6
            assert (edited.get_parameter(name) - plain - change).abs().max() <= bound


# Going on from an archive


def test_a_resumed_run_goes_on_with_statistics_optimizers_and_rates(case: Case) -> None:
    first = case.trainer()
    first.run()
    saved, path = state_of(first.model), case.folder / "saved"
    Path(first.save_path).rename(path)

    second = case.trainer(archive=str(path))

    resumed = state_of(second.model)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in saved.items())
    for mine, other in ((first.opt, second.opt), (first.lr_opt, second.lr_opt)):
        for one, two in zip(mine.state.values(), other.state.values(), strict=True):
            assert one["step"] == two["step"] > 0
            assert torch.equal(one["exp_avg"], two["exp_avg"])
    second.run()
    before, after = counts(saved), counts(state_of(second.model))
    assert all(after[key] > before[key] for key in before)
    assert second.global_iter == 7


def test_resumed_statistics_are_those_of_one_run_over_the_same_batches(case: Case) -> None:
    def see(trainer: Any, batches: list[Any]) -> Any:
        trainer.model.train()
        for batch in batches:
            trainer.model.edit(batch["edit_inner"])
        return trainer

    once = case.trainer()
    batches = list(once.val_loader)
    expected = see(once, batches)
    half = see(case.trainer(), batches[:2])
    half.global_iter = 2
    half.save_state(None)
    resumed = see(case.trainer(archive=half.save_path), batches[2:])

    found, wanted = state_of(resumed.model), state_of(expected.model)
    for name in found:
        if name.rpartition(".")[2] in STATISTICS:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-9)


def test_a_run_goes_on_from_an_archive_that_easyedits_own_trainer_wrote(case: Case) -> None:
    first = case.trainer()
    first.run()
    content = torch.load(first.save_path, weights_only=True)
    content["model"]["model_config"] = first.model.model.config  # as EasyEdit has it
    path = case.folder / "easyedits"
    torch.save(content, path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)

    second = case.trainer(archive=str(path))
    second.run()

    before, after = counts(content["model"]), counts(state_of(second.model))
    assert all(after[key] > before[key] for key in before)
    with pytest.raises(Exception, match="weights_only"):  # torch trusts no more than before
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["network.safetensors", "network.pt"])
def test_a_run_goes_on_from_a_network_without_its_optimizers(case: Case, name: str) -> None:
    first = case.trainer()
    first.run()
    saved = state_of(first.model)
    path = save_archive(case.folder / name, first.model.network)

    second = case.trainer(archive=str(path))

    resumed = state_of(second.model)
    assert all(torch.equal(resumed[key], tensor) for key, tensor in saved.items())
    assert second.config.archive == str(path)
    second.run()


def test_an_archive_for_other_targets_is_refused_with_what_differs(case: Case) -> None:
    first = case.trainer()
    first.run()

    with pytest.raises(Exception, match=r"edit_lrs is 9 in the archive and 3 here"):
        case.trainer(archive=first.save_path, inner_params=toys.toy_targets(case.model)[-3:])


# Beside EasyEdit's own MEND, on one device


@contextmanager
def on_this_machine() -> Iterator[None]:
    """EasyEdit's own method on the CPU: the release writes `cuda:` before every device."""
    with nullcontext() if TODAY else cuda_elsewhere():
        yield


class Pair:
    """Ours and EasyEdit's own MEND with one and the same network, over copies of one model."""

    def __init__(self, folder: Path, **values: Any) -> None:
        case = Case(folder, FAMILY)
        for module in case.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # as EasyEdit's trainer does; ours edits without dropout anyway
        fields = case.fields(alg="MEND", **values)
        self.config = MENDTrainingHparams(**fields)
        self.config.gradient_diagnostics = True
        replace_mend(gradient_diagnostics=True)
        self.ours = ALG_TRAIN_DICT["MEND"](copy.deepcopy(case.model), self.config, None)
        restore_mend()
        with on_this_machine():
            theirs = copy.deepcopy(case.model)
            self.theirs = ORIGINAL(theirs, self.config, lambda: copy.deepcopy(theirs))
        trained = toys.toy_network(
            case.model, toys.toy_tokenizer(side="left"), shared=self.config.shared
        )
        for one in (self.ours, self.theirs):
            state = {**copy.deepcopy(trained.state_dict()), "model_config": case.model.config}
            one.load_state_dict(state)
        records = ZsreDataset(str(case.records), config=self.config)
        # Without padding: EasyEdit counts it as positions, which GPT-2 notices.
        self.batch = records.collate_gpt_fn([records[0]])

    def losses(self, trainable: Any) -> tuple[float, float, dict[str, Any]]:
        """As EasyEdit's trainer takes them: of the edit, and of what should stay."""
        batch = self.batch
        with on_this_machine():
            base = trainable(**batch["loc"])
            edited, info = trainable.edit(batch["edit_inner"], batch["cond"])
            logits = edited(**batch["edit_inner"])
            edit = trainable.edit_loss_fn(self.config, logits, batch["edit_inner"]["labels"])["nll"]
            mask = batch["loc"]["decoder_attention_mask"]
            after = edited(**batch["loc"])
        width = mask.shape[1]
        kept = kl_loc_loss(base[:, -width:].detach(), after[:, -width:], mask=mask)
        return edit.item(), kept.item(), info


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "of-its-own"])
def test_losses_and_measurements_of_a_trained_network_equal_easyedits_own(
    tmp_path: Path, shared: bool
) -> None:
    """In eval mode, for one record (no padding), with EasyEdit's own network loaded."""
    pair = Pair(tmp_path, shared=shared)

    ours = pair.losses(pair.ours.eval())
    theirs = pair.losses(pair.theirs.eval())

    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-4)
    assert ours[1] > 1e-3  # the edit has an effect
    # The release has the measurements in the order of inner_params, as today's EasyEdit.
    assert set(ours[2]) == set(theirs[2])
    for key, value in theirs[2].items():
        assert ours[2][key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def test_statistics_after_a_call_in_training_mode_equal_easyedits_own(tmp_path: Path) -> None:
    """EasyEdit's begin anew in each process, so both begin here."""
    pair = Pair(tmp_path)
    for one in (pair.ours, pair.theirs):
        one.train()
        for name, buffer in one.mend.named_buffers():
            assert name.rpartition(".")[2] in STATISTICS
            buffer.fill_(float("nan"))
        with on_this_machine():
            one.edit(pair.batch["edit_inner"], pair.batch["cond"])
            one.edit(pair.batch["edit_rephrase"], pair.batch["cond"])

    theirs = dict(pair.theirs.mend.named_buffers())
    for name, found in pair.ours.mend.named_buffers():
        torch.testing.assert_close(found, theirs[name], rtol=1e-3, atol=1e-8, msg=name)


@pytest.mark.parametrize("model_class", ["AutoModelForCausalLM", "LlamaForCausalLM"])
def test_the_loss_of_a_decoder_does_not_depend_on_how_its_class_is_called(
    case: Case, model_class: str
) -> None:
    """EasyEdit's own loss compares labels with the first positions for a class it does not know."""
    trainer = case.trainer(model_class=model_class)
    batch = next(iter(trainer.val_loader))["edit_inner"]
    trainer.model.eval()

    logits = trainer.model(**batch)
    loss = trainer.model.edit_loss_fn(trainer.config, logits, batch["labels"])["nll"]

    predictions = logits[:, -batch["labels"].shape[1] - 1 : -1].flatten(0, 1)
    expected = nn.functional.cross_entropy(predictions, batch["labels"].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# The edited model


def test_an_edited_model_is_the_same_model_and_feels_its_edit_only_when_called(case: Case) -> None:
    trainable = case.trainer().model
    batch = next(iter(case.trainer().val_loader))["edit_inner"]
    plain = trainable(**batch)
    trainable.train()

    once, _ = trainable.edit(batch)
    twice, _ = once.edit(batch)
    calls = [trainable(**batch), once(**batch), twice(**batch), trainable(**batch), once(**batch)]

    assert torch.equal(calls[0], plain)
    assert torch.equal(calls[3], plain)
    assert torch.equal(calls[1], calls[4])
    assert not torch.allclose(calls[1], plain)
    assert not torch.allclose(calls[2], calls[1])
    assert twice.model is trainable.model
    assert twice.network is trainable.network
    assert not any(module._forward_hooks for module in trainable.model.modules())


def test_an_edit_without_history_has_no_gradient(case: Case) -> None:
    trainable = case.trainer().model
    batch = next(iter(case.trainer().val_loader))["edit_inner"]
    trainable.train()

    with_history, _ = trainable.edit(batch)
    without, _ = trainable.edit(batch, detach_history=True)

    assert with_history(**batch).requires_grad
    assert not without(**batch).requires_grad


def test_what_needs_the_true_gradient_is_measured_only_when_asked_for(case: Case) -> None:
    found = {}
    for asked in (False, True):
        trainer = case.trainer(gradient_diagnostics=asked)
        batch = next(iter(trainer.val_loader))["edit_inner"]
        trainer.model.train()
        found[asked] = trainer.model.edit(batch)[1]

    kinds = {asked: {key.rstrip("0123456789") for key in keys} for asked, keys in found.items()}
    assert kinds[False] == {"grad/pseudo_mag", "grad/pseudo_std"}
    others = {"true_mag", "true_std", "diff", "cos"}
    assert kinds[True] == kinds[False] | {f"grad/{name}" for name in others}
    assert len(found[True]) == 6 * len(toys.toy_targets(case.model))


# What would train nothing


@pytest.mark.parametrize("after", ["the interval", "the run"])
def test_a_gradient_of_zero_at_every_target_is_an_error(case: Case, after: str) -> None:
    interval = 3 if after == "the interval" else 100
    trainer = case.trainer(cedit=0.0, cloc=0.0, log_interval=interval)

    with pytest.raises(TrainingError, match=r"in \d training step.* was zero.*Check that cedit"):
        trainer.run()

    assert trainer.model.steps == (3 + 1 if after == "the interval" else 6)
    assert not Path(trainer.save_path).exists()


@pytest.mark.parametrize("alg", ["MEND", "MEND_PARALLEL"])
def test_an_edit_that_is_not_felt_is_an_error_whatever_easyedit_allows(
    case: Case, alg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EasyEdit forgives missing gradients to MEND under model_parallel, and to nothing else."""
    monkeypatch.setattr(bridge, "attached", lambda *_: nullcontext())
    replace_mend()
    fields = case.fields(alg=alg, model_parallel=True)
    hparams = MENDTrainingHparams(**fields) if alg == "MEND" else case.hparams(model_parallel=True)
    trainer = case.trainer(hparams)
    trainer.model.model.requires_grad_(True)  # so that the loss has a gradient, somewhere else

    with pytest.raises((TrainingError, RuntimeError)) as refused:
        trainer.run()

    if alg == "MEND":
        assert isinstance(refused.value, TrainingError)
        assert "missing: the loss does not depend on any update" in str(refused.value)
    else:
        assert "not have been used in the graph" in str(refused.value)


def test_a_gradient_that_is_never_finite_is_an_error(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EasyEdit skips such steps and says so in its log alone."""
    trainer = case.trainer()
    loss = trainer.model.edit_loss_fn

    def broken(*args: Any, **kwargs: Any) -> Any:
        found = loss(*args, **kwargs)
        return {**found, "nll": found["nll"] * float("inf") if tried["edit"] else found["nll"]}

    tried = {"edit": False}
    edit = trainer.model.edit

    def edit_first(*args: Any) -> Any:
        tried["edit"] = False
        answer = edit(*args)
        tried["edit"] = True
        return answer

    monkeypatch.setattr(trainer.model, "edit_loss_fn", broken)
    monkeypatch.setattr(trainer.model, "edit", edit_first)

    with pytest.raises(TrainingError, match="was not finite"):
        trainer.run()


def test_a_run_that_makes_no_step_is_an_error(case: Case) -> None:
    trainer = case.trainer(max_iters=1)

    with pytest.raises(TrainingError, match=r"no training step: max_iters is 1 .* 8 batches"):
        trainer.run()


def test_statistics_of_a_single_row_are_an_error(case: Case) -> None:
    trainer = case.trainer(shared=False)
    batch = {
        "input_ids": torch.tensor([[4, 5]]),
        "attention_mask": torch.ones(1, 2, dtype=torch.long),
        "labels": torch.tensor([[9]]),
    }
    trainer.model.train()

    with pytest.raises(TrainingError, match=r"have 1 row\(s\) so far"):
        trainer.model.edit(batch)


# Whose MEND it is


def test_replace_mend_trains_text_models_with_easyedits_own_hyperparameters(case: Case) -> None:
    replace_mend()
    trainer = case.trainer(MENDTrainingHparams(**case.fields(alg="MEND")))

    trainer.run()

    assert isinstance(trainer.model, bridge.Trainable)
    assert trainer.model.steps == 6
    assert "models/MEND/" in trainer.save_path
    assert load_archive(trainer.save_path).has_optimizer
    restore_mend()
    assert ALG_TRAIN_DICT["MEND"] is ORIGINAL


def test_other_trainers_keep_easyedits_own_mend(case: Case) -> None:
    replace_mend()
    hparams = MENDTrainingHparams(**case.fields(alg="MEND"))
    records = ZsreDataset(str(case.records), config=hparams)

    with on_this_machine():
        trainer = MultimodalTrainer(hparams, records, records)

    assert type(trainer.model) is ORIGINAL
    assert ALG_TRAIN_DICT["MEND"] is not ORIGINAL


def test_our_name_in_a_trainer_for_other_models_is_refused(case: Case) -> None:
    hparams = case.hparams()
    records = ZsreDataset(str(case.records), config=hparams)

    with pytest.raises(HparamsError, match=r"trains text models, with EditTrainer.*alg: MEND"):
        MultimodalTrainer(hparams, records, records)


def test_a_run_of_another_method_is_easyedits_own(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALG_TRAIN_DICT, "OTHER", OURS)
    hparams = case.hparams()
    hparams.alg = "OTHER"
    trainer = case.trainer(hparams)

    # it saved nothing, and evaluates what it saved, unless it has the change of docs/upstream.md
    mended = hasattr(EditTrainer, "has_saved")
    with nullcontext() if mended else pytest.raises(FileNotFoundError):
        trainer.run()


# On several devices


@pytest.mark.parametrize("on_disk", [range(3), range(6)], ids=["below-the-targets", "all-blocks"])
def test_a_model_that_lies_on_disk_is_trained_as_one_in_memory(case: Case, on_disk: range) -> None:
    """The head and the embeddings stay in memory; nothing is written to the disk."""
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm"), "cpu")
    places |= {f"model.layers.{n}": "disk" if n in on_disk else "cpu" for n in range(toys.BLOCKS)}
    kwargs = {"device_map": places | {"lm_head": "cpu"}}
    kwargs["offload_folder"] = str(case.folder / "offload")
    found = []
    for model_kwargs in (None, kwargs):
        trainer = case.trainer(model_kwargs=model_kwargs)
        torch.manual_seed(1)
        trainer.run()
        found.append(json.loads((case.folder / "results/results.json").read_text())["results"])

    in_memory, spread = found
    assert trainer.model.model.hf_device_map == kwargs["device_map"]
    for name in ("loss/edit_val", "loss/loc_val", "nll/post_val"):
        assert spread[name] == pytest.approx(in_memory[name], rel=1e-3)


def test_on_six_cuts_of_a_llama_easyedits_trainer_trains_as_on_one_device(tmp_path: Path) -> None:
    """In a process of its own, since simulated accelerators cannot be taken back."""
    script = Path(__file__).with_name("simulated_training.py")
    child = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout[-5000:]
    found = json.loads(child.stdout.strip().splitlines()[-1])

    assert len(found) == 6
    for cut, of_cut in found.items():
        assert of_cut["devices"] == ["sim:0", "sim:1"], cut
        assert of_cut["gradient_apart"] <= 1e-3, cut
        assert of_cut["unmoved"] == [], cut
        assert of_cut["evaluated"], cut
        assert of_cut["hooks_kept"], cut
