"""Hyperparameters in EasyEdit's spelling, read from EasyEdit's own MEND yaml files as they are.

Knows the names of EasyEdit's fields and nothing else of EasyEdit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from easyedit_mend_parallel.errors import HparamsError, suggestion
from easyedit_mend_parallel.hypernetwork import HypernetworkConfig

METHOD = "MEND_PARALLEL"
"""The name of this method in EasyEdit, `alg_name` and `alg` alike."""
HOST_METHOD = "MEND"
"""The name of EasyEdit's own method, whose files are read too."""
METHOD_FIELDS = ("alg_name", "alg")
"""The fields that name the method: EasyEdit's editors read one and its trainers the other."""

APPLY = ("weight", "output")
"""How an update gets into the model: written, or added to the layer's output."""

Hparams = TypeVar("Hparams", bound="MendHparams")


@dataclass(kw_only=True)
class MendHparams:
    """The fields that EasyEdit's MEND has for editing and for training alike.

    Those without a default have to be in the file. `model_kwargs`, `network_device`, `apply` and
    `shadow_limit` and `gradient_diagnostics` are this package's own: what `from_pretrained` is
    called with, where the hypernetwork lives (default: beside the highest target), whether an
    update is written into the weight or added to the layer's output, how much memory edited
    weights may take that would otherwise lie on disk (default: as much as they need), and whether
    training compares each update with the gradient it came from. So are
    `special_tokens_in_labels` (whether labels have the special tokens that EasyEdit leaves in
    them), `untrained` (edit with the identity network and a step that is searched for each
    request), `max_relative_norm` (the longest such step, as a share of each weight's norm) and
    `step_margin` (how many times the shortest step that brings the answer is taken).
    """

    # Model
    model_name: Any
    inner_params: list[str]
    archive: str | None
    model_class: str = "AutoModelForCausalLM"
    tokenizer_class: str = "AutoTokenizer"
    tokenizer_name: str | None = None
    model_parallel: bool = False
    device: int | str = 0
    half: bool = False

    # Method
    rank: int
    edit_lr: float
    shared: bool
    combine: bool
    norm: bool
    init: str
    mlp_class: str
    n_hidden: int
    one_sided: bool
    x_only: bool
    delta_only: bool
    hidden_dim: int | None = None
    act: str = "relu"
    lr: float = 1e-6
    lr_lr: float = 1e-4
    lr_scale: float = 1.0
    cedit: float = 0.1
    cloc: float = 1.0
    cbase: float = 1.0
    dropout: float | None = 0.0
    train_base: bool = False
    no_grad_layers: Any = None
    seed: int = 42

    # Training
    batch_size: int = 1
    val_batch_size: int = 5
    accumulate_bs: int = 10
    max_epochs: int | None = None
    max_iters: int | None = None
    max_length: int = 40
    max_output_length: int | None = None
    model_save_pt: int = 5000
    opt: str = "Adam"
    grad_clip: float = 100.0
    log_interval: int = 1000
    eval_log_interval: int = 1000
    val_interval: int = 1000
    val_steps: int = 500
    early_stop_patience: int = 20000
    early_stop_key: str = "loss/total_edit_val"
    final_eval: bool = True
    eval_only: bool = False
    debug: bool = False
    save: bool = False
    silent: bool = False
    verbose: bool = True

    # Output
    results_dir: str = "./results"

    # This package
    model_kwargs: dict[str, Any] | None = None
    network_device: int | str | None = None
    apply: str = "weight"
    shadow_limit: int | str | None = None
    gradient_diagnostics: bool = False
    special_tokens_in_labels: bool = True
    untrained: bool = False
    max_relative_norm: float = 0.05
    step_margin: float = 2.0

    # Both names, since EasyEdit's editors read one and its trainers the other
    alg_name: str = METHOD
    alg: str = METHOD

    def __post_init__(self) -> None:
        problems = _problems_with(vars(self))
        if problems:
            raise HparamsError("; ".join(problems))
        for name in METHOD_FIELDS:
            setattr(self, name, METHOD)

    @property
    def shadow_bytes(self) -> int | None:
        """`shadow_limit` in bytes, None for no limit; raises HparamsError for what is no size."""
        return shadow_bytes(self.shadow_limit)

    def network_config(self) -> HypernetworkConfig:
        """The hypernetwork's part; raises HparamsError for options that cannot be built."""
        return HypernetworkConfig(**{name: getattr(self, name) for name in NETWORK_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_hparams(cls: type[Hparams], hparams_name_or_path: str | Path) -> Hparams:
        """Read a yaml or json file; `.yaml` may be left off, as in EasyEdit.

        Raises HparamsError for a file that is missing or no mapping, and for keys that are
        missing, misspelt, or of the wrong type: all of them at once.
        """
        values, path = read_values(hparams_name_or_path)
        return cls.from_values(values, str(path))

    @classmethod
    def taken_from(cls: type[Hparams], hparams: Any, options: Mapping[str, Any]) -> Hparams:
        """Hyperparameters of this package as they are; or EasyEdit's own, with `options` added."""
        if isinstance(hparams, cls):
            return hparams
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in vars(hparams).items() if name in known}
        return cls.from_values({**values, **options}, "EasyEdit's hyperparameters")

    @classmethod
    def from_values(
        cls: type[Hparams], values: dict[str, Any], source: str = "the hyperparameters"
    ) -> Hparams:
        """Hyperparameters from names and values; `source` is named in the HparamsError."""
        converted, problems = cls.looked_through(values)
        if problems:
            raise HparamsError(f"{source}: " + "; ".join(problems))
        return cls(**converted)

    @classmethod
    def looked_through(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What of `values` can be used, each of its field's type, and what is wrong with the rest.

        Names only what is unknown, missing or of another type; see also `every_problem`.
        """
        fields = {option.name: option for option in dataclasses.fields(cls)}
        problems = [
            f"unknown key {name!r}" + suggestion(name, fields)
            for name in values
            if name not in fields
        ]
        problems += [
            f"missing key {name!r}"
            for name, option in fields.items()
            if name not in values and option.default is dataclasses.MISSING
        ]
        converted = {}
        for name, value in values.items():
            if name in fields:
                try:
                    converted[name] = _converted(value, str(fields[name].type))
                except ValueError:
                    problems.append(f"{name} is {value!r}, not a {fields[name].type}")
        return converted, problems

    @classmethod
    def every_problem(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """As `looked_through`, and what the values that can be read must not be: all at once.

        The values come with the defaults of the fields that are absent.
        """
        converted, problems = cls.looked_through(values)
        defaults = {
            option.name: option.default
            for option in dataclasses.fields(cls)
            if option.default is not dataclasses.MISSING
        }
        return {**defaults, **converted}, problems + _problems_with(converted)


@dataclass(kw_only=True)
class MENDParallelHyperParams(MendHparams):
    """Hyperparameters for editing: what `BaseEditor.from_hparams` and `MendParallel` take."""


@dataclass(kw_only=True)
class MENDParallelTrainingHparams(MendHparams):
    """Hyperparameters for training the hypernetwork: what EasyEdit's `EditTrainer` takes.

    The fields of its own are for this package's trainer. A step draws a text that shall not
    change for each edit, a share of `neighbour_share` of them about another subject of the same
    relation, and compares its predictions before and after at `locality_positions` positions.
    `statistics_examples` edits are seen for the network's statistics before the first step.
    Hidden states below the lowest target are kept in memory up to `trunk_memory`, then on disk up
    to `trunk_disk`, in `trunk_folder` for the next run. `lr_schedule` is one of transformers'
    schedulers (`constant`, `linear`, `cosine`); `nan_limit` is how many steps in a row may have
    a loss or gradient that is not a number.
    """

    neighbour_share: float = 0.6
    locality_positions: int = 6
    statistics_examples: int = 1000
    trunk_memory: int | str = "1GiB"
    trunk_disk: int | str = 0
    trunk_folder: str | None = None
    lr_schedule: str = "constant"
    nan_limit: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _bytes("trunk_memory", self.trunk_memory)
        _bytes("trunk_disk", self.trunk_disk)

    @property
    def trunk_bytes(self) -> tuple[int, int]:
        """`trunk_memory` and `trunk_disk` in bytes."""
        return _bytes("trunk_memory", self.trunk_memory), _bytes("trunk_disk", self.trunk_disk)


def read_values(name_or_path: str | Path) -> tuple[dict[str, Any], Path]:
    """The names and values in a yaml or json file, and its path; `.yaml` may be left off.

    Raises HparamsError for a file that is missing, cannot be parsed or names no method.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = path.with_name(path.name + ".yaml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HparamsError(f"cannot read hyperparameters from {path}: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise HparamsError(f"{path} cannot be parsed: {error}") from error
    if not isinstance(values, dict):
        raise HparamsError(f"{path} does not hold a mapping of names to values")
    if not set(METHOD_FIELDS) & set(values):
        raise HparamsError(f"{path} names no method: add `alg_name: {METHOD}`")
    return values, path


NETWORK_FIELDS = tuple(option.name for option in dataclasses.fields(HypernetworkConfig))


def _problems_with(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with those of `values` that are there, whose types are right."""
    problems = [
        f"{name} is {values[name]!r}: these are hyperparameters of {METHOD}; files that say "
        f"{HOST_METHOD!r} are read too"
        for name in METHOD_FIELDS
        if values.get(name, METHOD) not in (METHOD, HOST_METHOD)
    ]
    targets = values.get("inner_params", [None])
    if isinstance(targets, str) or not targets:
        problems.append(
            f"inner_params is {targets!r}; it has to list the names of the weights to edit"
        )
    model_kwargs = values.get("model_kwargs")
    if model_kwargs is not None and not isinstance(model_kwargs, dict):
        problems.append(
            f"model_kwargs is {model_kwargs!r}; it has to map arguments of "
            "from_pretrained (device_map, max_memory, dtype, ...) to their values"
        )
    apply = values.get("apply", APPLY[0])
    if apply not in APPLY:
        problems.append(
            f"apply is {apply!r}; it has to be 'weight' (the update is written into the "
            "weight) or 'output' (it is added to the layer's output, and nothing is written)"
        )
    longest = values.get("max_relative_norm", 1.0)
    if not 0 < longest < math.inf:
        problems.append(
            f"max_relative_norm is {longest}; it has to be a positive number, the longest step of "
            "an untrained edit as a share of each weight's norm"
        )
    margin = values.get("step_margin", 1.0)
    if not 1 <= margin < math.inf:
        problems.append(
            f"step_margin is {margin}; it multiplies the shortest step of an untrained edit that "
            "brings the answer, so it has to be 1 or more"
        )
    network = {name: values[name] for name in NETWORK_FIELDS if name in values}
    for check in (
        lambda: HypernetworkConfig(**{"rank": 1, **network}),
        lambda: shadow_bytes(values.get("shadow_limit")),
    ):
        try:
            check()
        except HparamsError as error:
            problems.append(str(error))
    return problems


def shadow_bytes(limit: int | str | None) -> int | None:
    """`shadow_limit` in bytes, None for no limit; raises HparamsError for what is no size."""
    return None if limit is None else _bytes("shadow_limit", limit)


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def _bytes(field: str, size: int | str) -> int:
    """A size in bytes, from a number or from one with a unit as in `max_memory`: `2GiB`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if isinstance(size, bool) or found is None or found[2] not in UNITS:
        raise HparamsError(
            f"{field} is {size!r}; it has to be a number of bytes, or one with a unit "
            f"({', '.join(unit for unit in UNITS if unit)}), such as '2GiB'"
        )
    return int(float(found[1]) * UNITS[found[2]])


def _converted(value: Any, kind: str) -> Any:
    """`value` as the field's type wants it. yaml reads `1e-4` as a string; EasyEdit's files say so.

    Raises ValueError where it is of another type.
    """
    if value is None and "None" in kind:
        return value
    if isinstance(value, os.PathLike) and kind.startswith("str"):
        return os.fspath(value)
    if kind.startswith("float") and isinstance(value, (str, int)) and not isinstance(value, bool):
        return float(value)
    plain = {"bool": bool, "int": int, "str": str, "float": float}.get(kind.split(" | ")[0])
    if plain is None or "|" in kind.replace(" | None", ""):
        return value
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ValueError
    return value
