"""How a batch is combined is chosen in the hyperparameters, or kept in the archive, or the default;
text that is held still is read once for a model, and held.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_aggregate import BATCH, editor_of
from torch import Tensor
from toys import same_bits, toy_hparams, toy_model, toy_network, toy_targets, toy_tokenizer, weights

from easyedit_mend_parallel import (
    ArchiveError,
    HparamsError,
    MendParallel,
    MENDParallelHyperParams,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.forward.capture import layer_rows
from easyedit_mend_parallel.forward.text_batch import make_text_batch
from easyedit_mend_parallel.method import preserved_cache
from easyedit_mend_parallel.method.archive_additions import keep_aggregate
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_text import PreservedInputs, lines_of

TEXT = ["the sun rises in the east", "my cat sat on the mat", "some people say that"]


def archive_of(folder: Path, name: str = "archive.safetensors") -> Path:
    model = toy_model("llama")
    return save_archive(folder / name, toy_network(model, toy_tokenizer()))


def reading(archive: Path, **values: Any) -> MendParallel:
    model = toy_model("llama")
    hparams = toy_hparams(
        toy_targets(model),
        archive=str(archive),
        **{"aggregate": None, "aggregate_options": None} | values,
    )
    return MendParallel(model, toy_tokenizer(), hparams)


# Options


def test_by_default_a_batch_is_solved_from_own_runs_with_the_shipped_text(tmp_path: Path) -> None:
    options = reading(archive_of(tmp_path)).aggregate

    assert (options.how, options.keys_from) == ("least_squares", "edited")
    assert options.preserved_text == lines_of(None)
    assert len(lines_of(None)) == 500


def test_what_an_archive_keeps_is_followed_and_hyperparameters_come_before_it(
    tmp_path: Path,
) -> None:
    archive = archive_of(tmp_path)
    before = load_archive(archive)
    kept = Aggregate(
        ridge=0.02, keys_from="unedited", preserved_text=tuple(TEXT), preserved_text_weight=0.5
    )

    keep_aggregate(archive, kept)

    after = load_archive(archive)
    assert all(same_bits(after.state[name], tensor) for name, tensor in before.state.items())
    assert {**before.header, "aggregate": after.header["aggregate"]} == after.header
    assert reading(archive).aggregate == kept
    mixed = reading(archive, aggregate_options={"ridge": "3e-3"}).aggregate
    assert (mixed.ridge, mixed.keys_from, mixed.preserved_text) == (3e-3, "unedited", tuple(TEXT))
    assert reading(archive, aggregate="mean_loss").aggregate.how == "mean_loss"


def test_an_archive_of_easyedits_format_keeps_no_options(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, "archive.pt")
    content = archive.read_bytes()

    with pytest.raises(ArchiveError, match=r"keeps no options.*\.safetensors"):
        keep_aggregate(archive, Aggregate())

    assert archive.read_bytes() == content


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"how": "at random"}, "how is 'at random'"),
        ({"riddge": 1.0}, r"unknown option 'riddge'; did you mean 'ridge'\?"),
        (["sum"], "does not map options to their values"),
        ({"preserved_text": "one line"}, "list of lines"),
    ],
)
def test_an_archive_that_keeps_nonsense_is_refused(kept: Any, says: str, tmp_path: Path) -> None:
    model = toy_model("llama")
    network = toy_network(model, toy_tokenizer())
    archive = save_archive(tmp_path / "archive.safetensors", network, aggregate=kept)

    with pytest.raises(ArchiveError, match=says):
        reading(archive)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"aggregate": "leest_squares"}, "did you mean 'least_squares'"),
        (
            {"aggregate_options": {"rows": "both"}},
            "keys_from is 'both'; it has to be one of edited",
        ),
        ({"aggregate_options": {"ridge": -1}}, "ridge is -1; it has to be 0 or more"),
        ({"aggregate_options": {"ridge": "much"}}, "ridge is 'much', not a number"),
        ({"aggregate_options": {"ridge": float("nan")}}, "it has to be 0 or more"),
        ({"aggregate_options": {"passes": 0}}, "passes is 0; it has to be 1 or more"),
        ({"aggregate_options": {"weight": 1}}, "unknown option 'weight'"),
        ({"aggregate_options": "ridge"}, "aggregate_options is 'ridge'; it has to map"),
        ({"batch_limit": "much"}, "batch_limit is 'much'; it has to be a number of bytes"),
    ],
)
def test_options_that_cannot_be_used_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(HparamsError, match=says):
        toy_hparams(["w"], **values)


def test_options_are_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(TEXT))
    fields = toy_hparams(["w"]).to_dict() | {
        "aggregate": "least_squares",
        "aggregate_options": {"ridge": "1e-3", "preserved_text": str(file)},
        "batch_limit": "500MB",
    }
    (tmp_path / "mend.json").write_text(json.dumps(fields))

    hparams = MENDParallelHyperParams.from_hparams(tmp_path / "mend.json")

    assert hparams.aggregation({}) == Aggregate(ridge=1e-3, preserved_text=tuple(TEXT))
    assert (hparams.preserved_text, hparams.batch_bytes) == (str(file), 500_000_000)


# Text that is held still


def outputs_on(model: Any, editor: MendParallel, texts: list[str]) -> dict[str, Tensor]:
    """How far an edit moves what each target puts out for what it sees of `texts`, unedited."""
    batch = make_text_batch(model, editor.tokenizer, texts)
    seen = layer_rows(model, editor.targets, batch)
    result = editor.edit(BATCH)
    moved = {name: result.updates[name].added(one.x).norm() for name, one in seen.items()}
    result.rollback()
    return moved


def test_text_that_is_held_still_is_moved_less(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(TEXT))
    free, held = (
        editor_of(
            toy_model("llama"),
            aggregate_options={
                "preserved_text": str(file),
                "preserved_text_weight": weight,
                "ridge": 1e-2,
            },
        )
        for weight in (0, 10.0)
    )

    assert held.aggregate.preserved_text == tuple(TEXT)
    loose, still = (outputs_on(editor.model, editor, TEXT) for editor in (free, held))
    for name, moved in loose.items():
        assert still[name] < 0.5 * moved


def test_text_is_gathered_once_for_a_model_and_its_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(preserved_cache, "cache_folder", lambda: tmp_path)  # not other tests'
    gathered, calls = PreservedInputs.gathered, []
    monkeypatch.setattr(
        PreservedInputs, "gathered", lambda *args: calls.append(1) or gathered(*args), raising=True
    )
    editor = editor_of(toy_model("llama"), aggregate_options=None)

    editor.edit(BATCH[0])
    assert calls == []  # one request needs none
    editor.edit(BATCH)
    editor.edit(BATCH[:2])
    hparams = toy_hparams(toy_targets(editor.model), aggregate=None, aggregate_options=None)
    again = MendParallel(editor.model, editor.tokenizer, hparams, network=editor.trained)
    again.edit(BATCH)

    assert calls == [1]


@pytest.mark.parametrize("slow", [True, False])
def test_a_line_says_what_takes_long_in_the_first_batch_of_a_base(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    slow: bool,
) -> None:
    monkeypatch.setattr(preserved_cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(preserved_cache, "SILENT_SECONDS", 0.01 if slow else 60.0)
    gathered = PreservedInputs.gathered
    monkeypatch.setattr(
        PreservedInputs, "gathered", lambda *args: time.sleep(0.3) or gathered(*args)
    )

    for _ in range(2):  # the second model of the same base reads what the first one wrote
        editor_of(toy_model("llama"), aggregate_options=None).edit(BATCH)

    said = [one for one in caplog.messages if "lines of preserved text" in one]
    assert len(said) == (1 if slow else 0)
    assert all(str(tmp_path) in one for one in said)


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\xff"])
def test_text_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(HparamsError, match=r"preserved_text: .*text\.txt"):
        editor_of(toy_model("llama"), aggregate_options={"preserved_text": str(file)})


def test_more_text_than_inputs_is_kept_as_its_gram_matrix() -> None:
    model = toy_model("llama")
    editor = editor_of(model)
    batches = [make_text_batch(model, editor.tokenizer, [text]) for text in TEXT * 3]

    held = PreservedInputs.gathered(model, editor.targets, batches)

    name = editor.targets[0].name
    x = torch.cat([layer_rows(model, editor.targets, one)[name].x for one in batches])
    one = held.of[name]
    assert (one.rows, one.count) == (None, len(x))
    assert one.gram is not None
    torch.testing.assert_close(one.gram, x.double().T @ x.double())


def test_an_edit_of_many_rolls_back_to_the_bit(caplog: pytest.LogCaptureFixture) -> None:
    model = toy_model("gpt2", dtype=torch.bfloat16)
    before = weights(model)
    with caplog.at_level(logging.INFO):
        result = editor_of(model).edit(BATCH, losses_after=True)
    assert result.losses_after is not None
    assert len(result.losses_after) == len(result.losses) == len(BATCH)

    result.rollback()

    assert all(same_bits(model.get_parameter(name), was) for name, was in before.items())
