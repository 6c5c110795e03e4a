"""A model or tokenizer that cannot be had is said at once, with the field that names it: a path
that does not exist, and a hub's name where there is no network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import toys
import transformers
from plan_toys import Toy
from torch import nn

from easyedit_mend_parallel import HparamsError, MENDParallelHyperParams
from easyedit_mend_parallel.cli import hub
from easyedit_mend_parallel.cli.loading import load_model
from easyedit_mend_parallel.cli.plan import plan


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path)
    toy.tokenizer.save_pretrained(toy.directory)
    return toy


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing answers; the list has what transformers was asked to load all the same."""
    asked: list[Any] = []

    def load(_cls: type, *args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return nn.Linear(1, 1)

    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", classmethod(load))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", classmethod(load))
    return asked


def hparams(toy: Toy, **values: Any) -> MENDParallelHyperParams:
    return MENDParallelHyperParams.from_hparams(toy.config(**values))


@pytest.mark.parametrize("field", ["tokenizer_name", "model_name"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such/name", "is 'no-such/name': no such folder, not in the hub's cache on this mach"),
        ("./no/such/folder", "is './no/such/folder': there is no such folder"),
        ("a name with spaces", "is 'a name with spaces': no such folder"),
    ],
)
def test_without_a_network_a_missing_name_is_refused_by_its_field(
    toy: Toy, offline: list[Any], field: str, name: str, message: str
) -> None:
    with pytest.raises(HparamsError, match=f"^{field} {message}"):
        load_model(hparams(toy, **{"tokenizer_name": str(toy.directory), field: name}))

    loaded = {"tokenizer_name": [], "model_name": [((str(toy.directory),), {})]}
    assert offline == loaded[field]  # a tokenizer before its model, and nothing that is missing


def test_what_is_in_the_cache_is_loaded_from_there_without_a_network(
    toy: Toy, offline: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, _file: f"/cache/{name}"
    )

    load_model(hparams(toy, tokenizer_name="some/cached"), torch.device("cpu"))

    assert offline == [(("some/cached",), {"local_files_only": True}), ((str(toy.directory),), {})]


def test_a_tokenizer_that_cannot_be_read_is_blamed_itself(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HparamsError, match=r"^tokenizer_name '.*empty' cannot be loaded"):
        load_model(hparams(toy, tokenizer_name=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such/name", "tokenizer_name is 'no-such/name': no such folder, and no such tokenizer"),
        ("/no/such/folder", "tokenizer_name is '/no/such/folder': there is no such folder"),
    ],
)
def test_check_says_that_a_tokenizer_is_missing(toy: Toy, name: str, message: str) -> None:
    (problem,) = plan(toy.config(tokenizer_name=name)).problems
    assert problem.startswith(message)


def test_check_says_that_a_folder_has_no_tokenizer(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (problem,) = plan(toy.config(tokenizer_name=str(tmp_path / "empty"))).problems
    assert "that folder has no tokenizer" in problem
    toys.byte_level_tokenizer().save_pretrained(tmp_path / "empty")
    assert plan(toy.config(tokenizer_name=str(tmp_path / "empty"))).problems == []


def test_packages_that_no_text_model_needs_do_not_warn(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = transformers.AutoTokenizer.from_pretrained

    def warning(*args: Any, **kwargs: Any) -> Any:
        for module in ("torchvision.io.image", "some.other"):
            warnings.warn_explicit(f"of {module}", UserWarning, module, 1, module=module)
        return original(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", warning)

    with pytest.warns(UserWarning, match="of some") as said:
        load_model(hparams(toy, tokenizer_class="AutoTokenizer"), torch.device("cpu"))

    assert not [one for one in said if "torchvision" in str(one.message)]
