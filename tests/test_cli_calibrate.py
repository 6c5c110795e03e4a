"""`mend-parallel calibrate`: statistics from a file of requests into an archive that an untrained
edit reads; what is wrong with the file is said by file and line, and nothing is written then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import REQUESTS, same_bits, toy_hparams, toy_model, toy_targets, toy_tokenizer
from typer.testing import CliRunner, Result

from easyedit_mend_parallel import (
    DataError,
    HparamsError,
    MendParallel,
    MendParallelError,
    MENDParallelHyperParams,
    load_archive,
)
from easyedit_mend_parallel.cli.app import app
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.requests import as_requests
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.calibration import calibrate
from easyedit_mend_parallel.weights.target import find_targets

LINES = [{**request, "relation": "anything"} for request in REQUESTS]


class Case:
    """A toy model in a folder, a yaml file for it, and a file of requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = toy_model("llama")
        self.model.save_pretrained(folder / "toy")
        toy_tokenizer(bos=True).save_pretrained(folder / "toy")
        self.data = folder / "facts.jsonl"
        self.data.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
        self.out = folder / "made.safetensors"
        self.config()

    def config(self, **values: Any) -> Path:
        fields = vars(toy_hparams(toy_targets(self.model), device="cpu")) | values
        fields |= {"model_name": str(self.folder / "toy")}
        path = self.folder / "mend.yaml"
        path.write_text(yaml.safe_dump(fields))
        return path

    def run(self, *more: str, **values: Any) -> Result:
        arguments = [str(self.config(**values)), "--data", str(self.data), "--out", str(self.out)]
        return CliRunner().invoke(app, ["calibrate", *arguments, *more])

    def refused(self, *more: str, **values: Any) -> MendParallelError:
        result = self.run(*more, **values)
        assert isinstance(result.exception, MendParallelError), result.output
        assert not self.out.exists()
        return result.exception


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize("way", [True, False])
def test_the_archive_holds_the_statistics_of_the_requests(case: Case, way: bool) -> None:
    result = case.run("--batch-size", "2", special_tokens_in_labels=way)
    assert result.exit_code == 0, result.output

    archive = load_archive(case.out)
    assert archive.trained is False
    assert archive.special_tokens_in_labels is way
    targets = find_targets(case.model, toy_targets(case.model))
    network = Hypernetwork(targets, toy_hparams(toy_targets(case.model)).network_config())
    requests = as_requests(LINES)
    calibrate(
        case.model,
        targets,
        network,
        [
            make_batch(case.model, toy_tokenizer(bos=True), part, special_tokens_in_labels=way)
            for part in (requests[:2], requests[2:])
        ],
    )
    for name, tensor in network.state_dict().items():
        assert archive.state[name].shape == tensor.shape
        if name.rpartition(".")[2] in ("u_mean", "u_std", "v_mean", "v_std", "k"):
            torch.testing.assert_close(archive.state[name], tensor)


def test_what_it_prints_written_into_the_file_edits(case: Case) -> None:
    result = case.run()
    printed = yaml.safe_load(result.stdout.split("edit with them:")[1])
    assert printed == {"untrained": True, "archive": str(case.out)}

    hparams = MENDParallelHyperParams.from_hparams(case.config(**printed, max_relative_norm=2.0))
    tokenizer = toy_tokenizer(bos=True)
    request = {"prompt": "the sun rises in the", "target_new": "Paris"}
    edit = MendParallel(case.model, tokenizer, hparams).edit(request)

    batch = make_batch(case.model, tokenizer, as_requests(request), special_tokens_in_labels=False)
    assert batch.answered(case.model).tolist() == [True]
    edit.rollback()


def test_no_more_requests_are_used_than_the_limit_and_that_is_said(case: Case) -> None:
    case.run("--limit", "1")
    one = load_archive(case.out)
    assert one.header["requests"] == 1
    result = case.run()
    assert "statistics of 3 of the 3 requests" in result.stdout
    count = "mend.(16, 24).k"
    assert one.state[count] < load_archive(case.out).state[count]


def test_the_same_command_makes_the_same_file(case: Case) -> None:
    case.run()
    first = load_archive(case.out).state
    case.run()
    again = load_archive(case.out).state
    assert all(same_bits(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{nonsense", "is not JSON"),
        ('{"prompt": "a cat sat on the"}', "'target_new' is missing"),
        ('{"prompt": "a cat", "target_new": "  "}', "'target_new' is empty"),
        ('["a cat"]', "must be an object"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(case: Case, line: str, said: str) -> None:
    case.data.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    error = case.refused()
    assert isinstance(error, DataError)
    assert f"{case.data}, line 2" in str(error)
    assert said in str(error)


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_file_without_requests_is_refused(case: Case, content: str | None) -> None:
    if content is None:
        case.data.unlink()
    else:
        case.data.write_text(content)
    assert str(case.data) in str(case.refused())


def test_statistics_that_nobody_would_use_or_could_tell_apart_are_refused(case: Case) -> None:
    assert isinstance(case.refused(norm=False), HparamsError)
    case.out = case.folder / "made.pt"
    assert "must end in .safetensors" in str(case.refused())


def test_a_model_that_cannot_be_loaded_is_named(case: Case) -> None:
    assert "there is no such folder" in str(
        case.refused(tokenizer_name=str(case.folder / "nowhere"))
    )
    assert "AutoModelForNothing" in str(case.refused(model_class="AutoModelForNothing"))
