"""`special_tokens_in_labels: false` in EasyEdit's trainer: its batches come with labels made, and
special tokens are left out of them in every loss of the edit; the archive says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from easyeditor import EditTrainer, ZsreDataset
from test_training import Case

from easyedit_mend_parallel import HparamsError, load_archive
from easyedit_mend_parallel.forward.batch import IGNORED

BOS = 1


class WithBOS(Case):
    """A case whose tokenizer puts <s> before every text, as Llama-2's does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        toys.toy_tokenizer(side="left", bos=True).save_pretrained(self.path)


@pytest.fixture
def case(tmp_path: Path) -> WithBOS:
    return WithBOS(tmp_path)


def batch_of(trainer: Any) -> Any:
    return next(iter(trainer.val_loader))["edit_inner"]


def loss(trainer: Any, labels: Any) -> Any:
    logits = trainer.model(**batch_of(trainer))
    return trainer.model.edit_loss_fn(trainer.config, logits, labels)["nll"]


def test_bos_is_in_the_labels_as_in_easyedit_unless_it_is_left_out(case: WithBOS) -> None:
    trainer = {way: case.trainer(special_tokens_in_labels=way) for way in (True, False)}
    labels = batch_of(trainer[True])["labels"]
    assert (labels == BOS).any(1).all(), "EasyEdit's own labels have it"
    masked = labels.masked_fill(labels == BOS, IGNORED)

    with torch.no_grad():
        assert loss(trainer[False], labels) == loss(trainer[True], masked)
        assert loss(trainer[False], labels) != loss(trainer[True], labels)


def test_the_edit_has_no_gradient_of_a_label_left_out(case: WithBOS) -> None:
    rows = {}
    for way in (True, False):
        trainer = case.trainer(special_tokens_in_labels=way)
        trainer.model.eval()
        trainer.model.load_state_dict(_with_statistics(case, trainer))
        _, info = trainer.model.edit(batch_of(trainer), return_factors=True)
        rows[way] = len(info["factors"][trainer.model.network.targets[-1].name][0])
    assert rows[True] - rows[False] == 2, "one row of each of two requests"


def _with_statistics(case: Case, trainer: Any) -> Any:
    network = toys.toy_network(
        case.model, toys.toy_tokenizer(bos=True), edit_lr=trainer.config.edit_lr
    )
    return network.state_dict()


@pytest.mark.parametrize("way", [True, False])
def test_the_archive_says_which_way_and_going_on_another_way_is_said(
    case: WithBOS, way: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)
    trainer = case.trainer(special_tokens_in_labels=way, final_eval=False)
    trainer.run()
    assert load_archive(trainer.save_path).special_tokens_in_labels is way

    with caplog.at_level(logging.WARNING, logger="easyedit_mend_parallel"):
        caplog.clear()
        case.trainer(special_tokens_in_labels=way, archive=str(trainer.save_path))
        assert not [m for m in caplog.messages if "special_tokens_in_labels" in m]
        case.trainer(special_tokens_in_labels=not way, archive=str(trainer.save_path))
    (said,) = [m for m in caplog.messages if "special_tokens_in_labels" in m]
    assert f"Write `special_tokens_in_labels: {str(way).lower()}`" in said


def test_a_training_set_without_a_tokenizer_is_refused_where_one_is_needed(case: WithBOS) -> None:
    hparams = case.hparams(special_tokens_in_labels=False)
    records = ZsreDataset(str(case.records), config=hparams)
    del records.tok
    with pytest.raises(HparamsError, match="no tokenizer"):
        EditTrainer(config=hparams, train_set=records, val_set=records)
