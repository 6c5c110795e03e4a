"""On one device, in fp32, one request gives the weights that EasyEdit's own MEND gives with the
same archive, within the contract's bound; and archives go both ways.

The release never puts its network into eval mode; here that is done for it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from easyeditor import MENDHyperParams
from easyeditor.models.mend.mend_main import MendRewriteExecutor
from easyeditor.trainer.algs.MEND import MEND
from host_toys import TODAY, assert_same_edit, mend_fields, write_yaml

from easyedit_mend_parallel import (
    MendParallel,
    MENDParallelHyperParams,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.easyedit.early_release import cuda_elsewhere

NAMES_IN_EASYEDIT = {"llama": "llama", "gpt2": "gpt2", "gptj": "gpt-j"}
"""The families that both executors know, by the name that EasyEdit decides by."""
if TODAY:
    NAMES_IN_EASYEDIT |= {"mistral": "mistral", "qwen2": "qwen2"}

REQUEST = {"prompt": "the capital of France is", "target_new": "Rome and Oslo"}


@contextmanager
def on_this_machine() -> Iterator[None]:
    """EasyEdit's own method, on the CPU: the release writes `cuda:` before every device."""
    with nullcontext() if TODAY else cuda_elsewhere():
        yield


class Case:
    """A model, EasyEdit's own network for it, trained as far as anyone can see, and its archive."""

    def __init__(self, folder: Path, family: str, **options: Any) -> None:
        self.model = toys.toy_model(family)
        self.tokenizer = toys.toy_tokenizer(side="left")
        self.names = toys.toy_targets(self.model)
        self.before = toys.weights(self.model)
        self.archive = folder / "archive.pt"
        self.yaml = write_yaml(
            folder / "mend.yaml",
            **mend_fields(
                model_name=NAMES_IN_EASYEDIT[family],
                model_class=type(self.model).__name__ if "gpt" in family else "LlamaForCausalLM",
                inner_params=self.names,
                archive=str(self.archive),
                edit_lr=0.01,
                **options,
            ),
        )
        model = copy.deepcopy(self.model)
        with torch.random.fork_rng(), on_this_machine():
            torch.manual_seed(1)
            self.host_network = MEND(model, self.host_hparams(), lambda: copy.deepcopy(model))
            for parameter in self.host_network.mend.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            for name, statistic in self.host_network.mend.named_buffers():
                statistic.copy_(0.01 * torch.rand_like(statistic) + ("std" in name) * 0.5)
            self.host_network.edit_lrs.data *= 1 + torch.rand_like(self.host_network.edit_lrs)

    def host_hparams(self) -> Any:
        return MENDHyperParams.from_hparams(self.yaml)

    def write_as_the_host_does(self) -> None:
        """What EasyEdit's trainer saves: its state holds the model's configuration object."""
        state = self.host_network.state_dict()
        assert type(state["model_config"]).__name__.endswith("Config")
        torch.save({"model": state, "opt": None, "lr_opt": None, "step": 1}, self.archive)

    def our_editor(self, **values: Any) -> MendParallel:
        hparams = MENDParallelHyperParams.from_hparams(self.yaml)
        hparams = dataclasses.replace(hparams, **{"on_worse": "ignore", **values})
        return MendParallel(copy.deepcopy(self.model), self.tokenizer, hparams)

    def host_executor(self) -> Any:
        """EasyEdit's own executor, which reads the archive."""
        executor = MendRewriteExecutor()
        with on_this_machine():
            executor.init_model(copy.deepcopy(self.model), self.tokenizer, self.host_hparams())
        executor.alg.eval()
        return executor

    def edited_by_the_host(self, *requests: dict[str, str]) -> Any:
        executor = self.host_executor()
        with on_this_machine():
            model, _ = executor.apply_to_model(
                executor.model, self.tokenizer, list(map(dict, requests)), self.host_hparams()
            )
        return model

    def assert_parity(self) -> None:
        self.write_as_the_host_does()
        ours = self.our_editor()
        ours.edit(REQUEST)
        save_archive(self.archive, ours.network, model_config=self.model.config.to_dict())

        assert_same_edit(ours.model, self.edited_by_the_host(REQUEST), self.before, self.names)


@pytest.mark.parametrize("family", NAMES_IN_EASYEDIT)
def test_one_request_gives_the_weights_of_easyedits_own_mend(tmp_path: Path, family: str) -> None:
    Case(tmp_path, family).assert_parity()


def test_mean_loss_gives_the_weights_of_a_batch_of_easyedits_own_mend(tmp_path: Path) -> None:
    """Where nothing is padded: EasyEdit's labels are the padded ids, and teach padding."""
    case = Case(tmp_path, "llama")
    case.write_as_the_host_does()
    requests = [
        {"prompt": "the capital of France is", "target_new": "Rome and"},
        {"prompt": "water boils at one hundred", "target_new": "green stone"},
    ]
    ours = case.our_editor(aggregate="mean_loss")

    ours.edit(requests)
    save_archive(case.archive, ours.network, model_config=case.model.config.to_dict())

    assert_same_edit(ours.model, case.edited_by_the_host(*requests), case.before, case.names)


IN_A_ROW = [
    {"prompt": prompt, "target_new": target}
    for prompt, target in [
        ("the capital of France is", "Rome and Oslo"),
        ("who wrote Hamlet", "Shakespeare"),
        ("the river that runs through the old town by the sea is", "a stone"),
        ("the sun rises in the", "west"),
        ("water boils at", "ten degrees"),
        ("my cat sat on", "the red stone"),
        ("the old town stands by", "the river"),
        ("some people say that the", "stone moves"),
    ]
]


@pytest.mark.parametrize("kept", [False, True], ids=["each undone", "all kept"])
def test_eight_requests_in_a_row_give_the_weights_of_easyedits_own_mend(
    tmp_path: Path, kept: bool
) -> None:
    """Within 1e-5 of the largest change: later edits are made on weights that differ already."""
    case = Case(tmp_path, "llama")
    case.write_as_the_host_does()
    ours = case.our_editor(sequence="add")
    save_archive(case.archive, ours.network, model_config=case.model.config.to_dict())
    executor = case.host_executor()
    theirs = executor.model

    largest = 0.0
    for request in IN_A_ROW:
        result = ours.edit(request)
        with on_this_machine():
            theirs, _ = executor.apply_to_model(
                theirs, case.tokenizer, [dict(request)], case.host_hparams()
            )
        for name in case.names:
            one, other = ours.model.get_parameter(name), theirs.get_parameter(name)
            change = (other - case.before[name]).abs().max()
            largest = max(largest, float((one - other).abs().max() / change))
        if not kept:
            result.rollback()
            theirs.load_state_dict(case.before, strict=False)

    assert 0 < largest <= 1e-5


@pytest.mark.parametrize(
    "option",
    [
        {"shared": False},
        {"combine": False},
        {"norm": False},
        {"one_sided": True, "combine": False},
        {"x_only": True, "combine": False},
        {"delta_only": True, "combine": False},
        {"n_hidden": 2},
        {"init": "xavier"},
    ],
    ids=str,
)
def test_each_option_of_the_network_gives_the_weights_of_easyedits_own_mend(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    Case(tmp_path, "llama", **option).assert_parity()


def test_an_archive_of_easyedit_is_read_whole(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama")
    case.write_as_the_host_does()

    read = load_archive(case.archive).state
    network = case.our_editor().network.state_dict()

    written = case.host_network.state_dict()
    del written["model_config"]
    assert set(read) == set(network) == set(written)
    for name, tensor in written.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(network[name], tensor.float())


def test_an_archive_of_this_package_is_read_whole_by_easyedit(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama")
    network = toys.toy_network(case.model, case.tokenizer, case.names)
    save_archive(case.archive, network, model_config=case.model.config.to_dict())

    read = case.host_executor().alg.state_dict()

    for name, tensor in network.state_dict().items():
        assert torch.equal(read[name], tensor.to(read[name].dtype)), name
