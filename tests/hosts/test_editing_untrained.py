"""`untrained: true` through EasyEdit: BaseEditor edits without a trained hypernetwork, and so does
EasyEdit's own name MEND after `replace_mend(untrained=True)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from easyeditor import BaseEditor, MENDHyperParams
from host_toys import KEPT, UNDONE, Toy, make_toy, write_yaml

from easyedit_mend_parallel import ArchiveError, replace_mend
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests

ONE: dict[str, Any] = {
    "prompts": ["the sun rises in the"],
    "target_new": ["Paris"],
    "ground_truth": ["east"],
}
UNTRAINED: dict[str, Any] = {"untrained": True, "max_relative_norm": 2.0}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


def answers(toy: Toy, model: Any) -> bool:
    requests = as_requests({"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]})
    return bool(make_batch(model, toy.tokenizer, requests).answered(model))


@pytest.mark.parametrize("edit_lr", ["1e-4", "-1e-4"])
def test_base_editor_edits_without_an_archive_and_weights_copy_undoes_it(
    toy: Toy, tmp_path: Path, edit_lr: str
) -> None:
    hparams = toy.hparams(tmp_path, archive=None, edit_lr=edit_lr, **UNTRAINED)
    assert not answers(toy, toy.model)

    metrics, model, weights_copy = BaseEditor.from_hparams(hparams).edit(**ONE, **KEPT)

    assert metrics[0]["post"]["rewrite_acc"] == [1.0]
    assert answers(toy, model)
    assert toy.changed() == set(toy.names)
    weights_copy()
    assert toy.changed() == set()


def test_an_untrained_edit_that_is_only_measured_is_gone_to_the_bit(
    toy: Toy, tmp_path: Path
) -> None:
    hparams = toy.hparams(tmp_path, archive=None, **UNTRAINED)
    metrics, _, _ = BaseEditor.from_hparams(hparams).edit(**ONE, **UNDONE)
    assert metrics[0]["post"]["rewrite_acc"] == [1.0]
    assert toy.changed() == set()


def test_easyedits_own_name_and_file_edit_after_replace_mend(toy: Toy, tmp_path: Path) -> None:
    replace_mend(archive=None, **UNTRAINED)
    hparams = MENDHyperParams.from_hparams(write_yaml(tmp_path / "easyedit.yaml", **toy.fields()))
    hparams.model_name = toy.pair

    metrics, model, weights_copy = BaseEditor.from_hparams(hparams).edit(**ONE, **KEPT)

    assert metrics[0]["post"]["rewrite_acc"] == [1.0]
    assert answers(toy, model)
    weights_copy()
    assert toy.changed() == set()


def test_without_the_field_a_missing_archive_stays_an_error(toy: Toy, tmp_path: Path) -> None:
    editor = BaseEditor.from_hparams(toy.hparams(tmp_path, archive=None))
    with pytest.raises(ArchiveError, match="untrained: true"):
        editor.edit(**ONE, **KEPT)
    assert toy.changed() == set()
