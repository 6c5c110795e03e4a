"""A trained hypernetwork survives the disk in both formats; what is broken, foreign, untrained or
would run code is refused; and a file is written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from toys import (
    REQUEST,
    assert_unchanged,
    same_bits,
    tokenizer_for,
    toy_hparams,
    toy_model,
    toy_network,
    toy_targets,
    weights,
)

from easyedit_mend_parallel import (
    ArchiveError,
    FileError,
    MendParallel,
    load_archive,
    save_archive,
)
from easyedit_mend_parallel.method import archive
from easyedit_mend_parallel.method.hypernetwork import STATISTICS, Hypernetwork

FORMATS = ["network.safetensors", "network.pt", "network"]


def trained(family: str = "llama", **options: Any) -> Hypernetwork:
    model = toy_model(family)
    return toy_network(model, tokenizer_for(model), **options)


def untrained(like: Hypernetwork, **options: Any) -> Hypernetwork:
    """A network for the same targets, with other random weights."""
    return toy_network(toy_model("llama"), None, names_of(like), observe=False, seed=7, **options)


def names_of(network: Hypernetwork) -> list[str]:
    return [target.name for target in network.targets]


def assert_same_state(one: Hypernetwork, other: Hypernetwork) -> None:
    here, there = one.state_dict(), other.state_dict()
    assert list(here) == list(there)
    assert all(same_bits(here[name], there[name]) for name in here)


# --- there and back


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "one-each"])
@pytest.mark.parametrize("combine", [True, False], ids=["combined", "two-sided"])
def test_a_network_comes_back_to_the_bit(
    name: str, shared: bool, combine: bool, tmp_path: Path
) -> None:
    network = trained(shared=shared, combine=combine)
    path = save_archive(tmp_path / "deeper" / name, network)
    again = untrained(network, shared=shared, combine=combine)

    load_archive(path).load_into(again)

    assert_same_state(again, network)
    assert os.listdir(path.parent) == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_an_editor_that_reads_the_archive_makes_the_same_edit(name: str, tmp_path: Path) -> None:
    model = toy_model("llama")
    tokenizer, names = tokenizer_for(model), toy_targets(model)
    network = toy_network(model, tokenizer)
    MendParallel(model, tokenizer, toy_hparams(names), network=network).edit(REQUEST)
    expected = weights(model)
    path = save_archive(tmp_path / name, network)

    other = toy_model("llama")
    editor = MendParallel(other, tokenizer, toy_hparams(names, archive=str(path)))
    editor.edit(REQUEST)

    assert_unchanged(other, expected)
    assert not editor.network.training
    assert not any(parameter.requires_grad for parameter in editor.network.parameters())


def test_a_network_without_norm_needs_no_statistics(tmp_path: Path) -> None:
    network = toy_network(toy_model("llama"), None, observe=False, norm=False)
    path = save_archive(tmp_path / "a.safetensors", network)
    again = untrained(network, norm=False)
    load_archive(path).load_into(again)
    assert_same_state(again, network)


def test_a_safetensors_archive_says_what_it_is_for(tmp_path: Path) -> None:
    network = trained(rank=5)
    path = save_archive(tmp_path / "a.safetensors", network, model_name="toy", steps=12)
    header = load_archive(path).header
    assert header["format_version"] == 1
    assert [target["name"] for target in header["targets"]] == names_of(network)
    assert header["config"]["rank"] == 5
    assert (header["model_name"], header["steps"]) == ("toy", 12)


@pytest.mark.parametrize("name", FORMATS)
def test_half_keeps_statistics_and_rates_in_fp32_and_needs_no_second_word(
    name: str, tmp_path: Path
) -> None:
    network = trained(edit_lr=1e-9)  # below what fp16 holds
    path = save_archive(tmp_path / name, network, half=True)
    state = load_archive(path).state
    halves = {key for key, tensor in state.items() if tensor.dtype == torch.float16}
    kept = {key for key in state if key == "edit_lrs" or key.rpartition(".")[2] in STATISTICS}
    if name.endswith(".safetensors"):
        assert halves == set(state) - kept
    assert all(same_bits(state[key], network.state_dict()[key]) for key in kept)

    again = untrained(network)
    load_archive(path).load_into(again)
    for key, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, network.state_dict()[key], rtol=1e-3, atol=1e-6), key


def test_half_takes_about_half_the_room(tmp_path: Path) -> None:
    network = trained()
    sizes = [
        save_archive(tmp_path / f"{half}.safetensors", network, half=half).stat().st_size
        for half in (False, True)
    ]
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("name", FORMATS)
def test_loading_into_an_empty_network_takes_the_archive(name: str, tmp_path: Path) -> None:
    network = trained()
    path = save_archive(tmp_path / name, network)
    with torch.device("meta"):
        empty = Hypernetwork(network.targets, network.config)
    load_archive(path).load_into(empty)
    assert_same_state(empty, network)


def test_a_network_that_was_loaded_does_not_change_with_the_next_file(tmp_path: Path) -> None:
    first, second = trained(), trained(seed=4)
    path = save_archive(tmp_path / "a.safetensors", first)
    with torch.device("meta"):
        loaded = Hypernetwork(first.targets, first.config)
    load_archive(path).load_into(loaded)  # its tensors are mapped from the file
    save_archive(path, second)
    assert_same_state(loaded, first)


# --- EasyEdit's files


def easyedit_archive(network: Hypernetwork, path: Path, prefix: str = "mend.") -> Path:
    """What EasyEdit's trainer writes: the configuration of the model pickled among the tensors."""
    state: dict[str, Any] = OrderedDict(
        (key.replace("mend.", prefix), tensor) for key, tensor in network.state_dict().items()
    )
    state["model_config"] = toy_model("llama").config
    optimizer = torch.optim.Adam(network.parameters())
    torch.save(
        {
            "model": state,
            "opt": optimizer.state_dict(),
            "lr_opt": None,
            "val_stats": {"loss/total_edit_val": 1.5},
            "start_time": "24/11/2024-10:00:00/000000",
            "elapsed_time": "00:01:00",
            "step": 100,
        },
        path,
    )
    return path


@pytest.mark.parametrize("prefix", ["mend.", "gtn."])
def test_easyedits_archive_is_read_with_the_configuration_pickled_in_it(
    prefix: str, tmp_path: Path
) -> None:
    network = trained()
    path = easyedit_archive(network, tmp_path / "archive", prefix)
    assert b"LlamaConfig" in path.read_bytes()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # torch alone refuses it

    again = untrained(network)
    load_archive(path).load_into(again)

    assert_same_state(again, network)
    assert load_archive(path).header == {}


@pytest.mark.parametrize("family", ["GPT2", "GPTJ", "T5", "Mistral", "Qwen2"])
def test_configurations_of_every_family_may_be_in_the_archive(family: str, tmp_path: Path) -> None:
    network = trained()
    path = tmp_path / "archive"
    config = getattr(transformers, family + "Config")(dtype=torch.bfloat16)
    torch.save({"model": {**network.state_dict(), "model_config": config}}, path)
    assert set(load_archive(path).state) == set(network.state_dict())


def test_reading_a_configuration_constructs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = easyedit_archive(trained(), tmp_path / "archive")

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the class in the file was used")

    monkeypatch.setattr(transformers.LlamaConfig, "__init__", refuse)
    monkeypatch.setattr(transformers.LlamaConfig, "__setattr__", refuse)
    load_archive(path)


def test_what_is_written_for_easyedit_is_read_by_torch_alone_and_has_its_keys(
    tmp_path: Path,
) -> None:
    network = trained()
    path = save_archive(tmp_path / "archive", network, model_config={"model_type": "llama"})
    content = torch.load(path, weights_only=True)
    assert content["model"].pop("model_config") == {
        "model_type": "llama",
        "easyedit_mend_parallel": {"special_tokens_in_labels": True},
    }
    assert set(content["model"]) == set(network.state_dict())
    for key in ("opt", "lr_opt", "val_stats", "start_time", "elapsed_time", "step"):
        assert key in content


# --- refused


def test_a_missing_archive_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=str(tmp_path / "nowhere.pt")):
        load_archive("nowhere.pt")
    with pytest.raises(ArchiveError, match="no archive"):
        load_archive(tmp_path)  # a folder


@pytest.mark.parametrize("name", ["network.safetensors", "network"])
@pytest.mark.parametrize("cut", [0, 1, 7, 9, 100, 0.25, 0.5, 0.75, 0.99, -1])
def test_a_truncated_archive_is_refused(name: str, cut: float, tmp_path: Path) -> None:
    path = save_archive(tmp_path / name, trained())
    whole = path.read_bytes()
    at = int(cut * len(whole)) if isinstance(cut, float) else cut
    path.write_bytes(whole[:at])

    with pytest.raises(ArchiveError, match=name):
        load_archive(path)


@pytest.mark.parametrize("name", ["network.safetensors", "network"])
@pytest.mark.parametrize(
    "content", [b"not an archive at all, but text\n" * 20, bytes(range(256)) * 9, b"\x80\x04N."]
)
def test_a_file_of_something_else_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=name):
        load_archive(path)


@pytest.mark.parametrize("header", [b"[1, 2]", b'"text"', b"{}", b"{broken"])
def test_a_safetensors_file_with_another_header_is_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ArchiveError, match=r"a\.safetensors"):
        load_archive(path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"model": None}, {"state": {}}, torch.zeros(3), {"model": {"weight": torch.zeros(2)}}],
    ids=["list", "no-state", "other-key", "tensor", "other-network"],
)
def test_a_pickle_that_holds_no_hypernetwork_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    torch.save(content, path)
    with pytest.raises(ArchiveError, match="is not an archive"):
        load_archive(path)


def test_a_safetensors_file_of_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"model.layers.0.weight": torch.zeros(2)}, path)
    with pytest.raises(ArchiveError, match="is not an archive of MEND"):
        load_archive(path)


@pytest.mark.parametrize("name", FORMATS)
def test_an_archive_of_another_models_shapes_is_refused_and_the_network_untouched(
    name: str, tmp_path: Path
) -> None:
    path = save_archive(tmp_path / name, trained())
    model = toy_model("gpt2")
    other = toy_network(model, tokenizer_for(model))
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}

    with pytest.raises(ArchiveError, match="edit_lrs is 9 in the archive and 6 here"):
        load_archive(path).load_into(other)

    assert all(same_bits(other.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 5}, r"layers\.0\.u is 40×6 in the archive and 40×5 here"),
        ({"n_hidden": 2}, r"layers\.2\.u is absent in the archive and 40×6 here"),
        ({"n_hidden": 0}, r"layers\.1\.bias is 40 in the archive and absent here"),
        ({"shared": False}, "absent"),
        ({"combine": False}, "absent"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_an_archive_of_other_options_is_refused(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    network = trained()
    path = save_archive(tmp_path / "a.safetensors", network)
    other = untrained(network, **options)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}

    with pytest.raises(ArchiveError, match=says) as caught:
        load_archive(path).load_into(other)

    assert str(path) in str(caught.value)
    assert all(same_bits(other.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_no_numbers_are_refused(
    name: str, value: float, tmp_path: Path
) -> None:
    network = trained()
    with torch.no_grad():
        network.get_buffer("mend.(16, 24).v_std")[3] = value
    path = save_archive(tmp_path / name, network)

    with pytest.raises(ArchiveError, match=r"never trained: mend\.\(16, 24\)\.v_std"):
        load_archive(path).load_into(untrained(network))


def test_an_archive_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    network = toy_network(toy_model("llama"), None, observe=False)
    path = save_archive(tmp_path / "archive", network)
    with pytest.raises(ArchiveError, match="never trained"):
        load_archive(path).load_into(untrained(network))


# --- would run code


class Runs:
    """Pickles to a call of `os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["model_config", "beside", "tensor"])
def test_an_archive_that_would_run_code_is_refused_by_what_it_asks_for_and_runs_nothing(
    where: str, tmp_path: Path
) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / "archive"
    payload = Runs(f"touch {marker}")
    state: dict[str, Any] = dict(trained().state_dict())
    content: dict[str, Any] = {"model": state}
    if where == "beside":
        content["opt"] = payload
    elif where == "model_config":
        state["model_config"] = payload
    else:
        state["edit_lrs"] = payload
    torch.save(content, path)

    with pytest.raises(ArchiveError, match=r"would run code .* (posix|nt)\.system"):
        load_archive(path)
    assert not marker.exists()

    torch.load(path, weights_only=False)  # and the file does what this test says it does
    assert marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        "builtins eval",
        "transformers.configuration_utils os",
        "transformers.models.llama.configuration_llama LlamaConfig.from_pretrained",
        "transformers.models.llama.modeling_llama LlamaModel",
        "transformers_modules.evil.configuration_evil EvilConfig",
        "transformers AutoModel.from_pretrained",
    ],
)
def test_a_pickle_may_name_a_configuration_class_and_nothing_else_and_never_reaches_it(
    asked: str, tmp_path: Path
) -> None:
    path, marker = tmp_path / "archive", tmp_path / "it-ran"
    module, _, name = asked.partition(" ")
    # A pickle, by hand: the global, called with one string.
    code = f"open({str(marker)!r}, 'w')".encode()
    called = b"(X" + struct.pack("<I", len(code)) + code + b"tR."
    pickled = b"\x80\x02c" + f"{module}\n{name}\n".encode() + called
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")

    # The name of a configuration class, even of none that exists, is stood in for by an inert one.
    inert = asked == "transformers.configuration_utils os"
    with pytest.raises(ArchiveError, match="is not an archive" if inert else "would run code"):
        load_archive(path)
    assert not marker.exists()
    if asked == "builtins eval":  # the file does what this test says it does
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_the_safe_classes_of_torch_are_as_they_were_after_reading(tmp_path: Path) -> None:
    archive = easyedit_archive(trained(), tmp_path / "archive")
    load_archive(archive)  # torch's own modules add classes when they are first imported
    before = set(torch.serialization.get_safe_globals())
    load_archive(archive)
    assert set(torch.serialization.get_safe_globals()) == before


# --- whole or not at all


class Full(OSError):
    """No space left on the device."""


def broken_write(*args: Any, **_kwargs: Any) -> None:
    for argument in args:
        if isinstance(argument, (str, Path)):
            Path(argument).write_bytes(b"half of it")
        elif isinstance(argument, io.IOBase):
            argument.write(b"half of it")
    raise Full


@pytest.mark.parametrize("name", ["network.safetensors", "network"])
@pytest.mark.parametrize("broken", ["writing", "os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [Full, KeyboardInterrupt])
@pytest.mark.parametrize("old", [True, False], ids=["old-file", "no-file"])
def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(
    name: str,
    broken: str,
    error: type[BaseException],
    old: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, path = trained(), trained(seed=4), tmp_path / name
    if old:
        save_archive(path, first)
    content = path.read_bytes() if old else b""

    def stop(*args: Any, **kwargs: Any) -> None:
        if broken == "writing":
            with pytest.raises(Full):
                broken_write(*args, **kwargs)
        raise error

    with monkeypatch.context() as patch:
        if broken == "writing":
            patch.setattr("torch.save", stop)
            patch.setattr("easyedit_mend_parallel.files.save_file", stop)
        else:
            patch.setattr(broken, stop)
        with pytest.raises(FileError if error is Full else error):
            save_archive(path, second)

    assert os.listdir(tmp_path) == ([name] if old else [])
    if old:
        assert path.read_bytes() == content
        load_archive(path).load_into(untrained(first))


def test_a_file_is_written_with_the_rights_of_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for name in ("a", "a.safetensors"):
        path = save_archive(tmp_path / name, trained())
        assert path.stat().st_mode == plain.stat().st_mode


def test_the_header_is_json(tmp_path: Path) -> None:
    path = save_archive(tmp_path / "a.safetensors", trained(), note="Ω")
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["easyedit_mend_parallel"])["note"] == "Ω"
    assert archive.FORMAT_VERSION == 1
