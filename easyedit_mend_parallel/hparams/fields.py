"""Hyperparameters in EasyEdit's spelling, read from EasyEdit's own MEND yaml files as they are.

Knows the names of EasyEdit's fields and nothing else of EasyEdit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from easyedit_mend_parallel.errors import HparamsError, suggestion
from easyedit_mend_parallel.hparams.values import (
    HOST_METHOD,
    METHOD,
    METHOD_FIELDS,
    NETWORK_FIELDS,
    batch_options,
    converted_to,
    problems_with,
    read_values,
    size_in_bytes,
)
from easyedit_mend_parallel.method.hypernetwork import HypernetworkConfig
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_text import lines_of

__all__ = ["HOST_METHOD", "METHOD", "MENDParallelHyperParams", "MENDParallelTrainingHparams"]

Hparams = TypeVar("Hparams", bound="MendHparams")


@dataclass(kw_only=True)
class MendHparams:
    """The fields that EasyEdit's MEND has for editing and for training alike, and this package's.

    Those without a default have to be in the file. What each means stands behind it (`#:`); from
    there docs/configuration.md is made, and a test asks that none is without.
    """

    # Model
    #: Path or hub id of the model; in Python also a pair `(model, tokenizer)`.
    model_name: Any
    #: Names of the weights to edit, e.g. `model.layers.31.mlp.up_proj.weight`.
    inner_params: list[str]
    #: The trained hypernetwork: a file that EasyEdit's trainer wrote, or one of `save_archive`.
    #: Training resumes from it; `null` starts anew.
    archive: str | None
    model_class: str = "AutoModelForCausalLM"  #: The class that EasyEdit's trainer loads.
    tokenizer_class: str = "AutoTokenizer"  #: The same for the tokenizer.
    tokenizer_name: str | None = None  #: Path or hub id of the tokenizer, for the trainer.
    #: EasyEdit spreads the model with `device_map="auto"`, unless `model_kwargs` say otherwise.
    model_parallel: bool = False
    #: Where EasyEdit's evaluation sends its prompts; accelerate takes them on from there.
    device: int | str = 0
    half: bool = False  #: With `no_grad_layers`, in EasyEdit's trainer: bfloat16.

    # Method
    rank: int  #: Bound on the rank of each layer of the hypernetwork.
    #: First value of each target's learned rate; the archive's value replaces it.
    edit_lr: float
    shared: bool  #: Targets of one shape share a network.
    combine: bool  #: One network for x and δ together; otherwise one for each.
    norm: bool  #: Rows are normalised by the statistics in the archive.
    init: str  #: `id`: each layer begins as the identity; or `xavier`.
    mlp_class: str  #: `IDMLP`; EasyEdit itself stops on `MLP`.
    n_hidden: int  #: The network has one layer more than this.
    one_sided: bool  #: Without `combine`: transform only the narrower of x and δ.
    x_only: bool  #: Without `combine`: transform only x.
    delta_only: bool  #: Without `combine`: transform only δ.
    hidden_dim: int | None = None  #: Read by no one: `IDMLP` has the rows' width.
    act: str = "relu"  #: Read by no one: `IDMLP` clamps at zero.
    lr: float = 1e-6  #: Learning rate of the hypernetwork.
    lr_lr: float = 1e-4  #: Learning rate of the learned rates.
    #: Multiplies the update, as in the early release; today's EasyEdit ignores it.
    lr_scale: float = 1.0
    cedit: float = 0.1  #: Weight of the edit's loss in training.
    cloc: float = 1.0  #: Weight of the locality loss in training.
    cbase: float = 1.0  #: Weight of the base model's own loss, with `train_base`.
    dropout: float | None = 0.0  #: EasyEdit's trainer sets the model's dropout to it.
    train_base: bool = False  #: EasyEdit's trainer trains the model itself, too.
    no_grad_layers: Any = None  #: EasyEdit's trainer sets it on the model.
    seed: int = 42  #: Seed of EasyEdit's trainer.

    # Training
    batch_size: int = 1  #: Records in a step; in `batch_edit`, requests in one update.
    val_batch_size: int = 5  #: Records in a step of validation.
    accumulate_bs: int = 10  #: Steps whose gradients are added up before the optimizer's.
    max_epochs: int | None = None  #: Bounds the steps by passes over the data.
    max_iters: int | None = None  #: Bounds the steps; EasyEdit makes one less.
    max_length: int = 40  #: Tokens to which EasyEdit's data set truncates.
    max_output_length: int | None = None  #: Read by no one for MEND.
    model_save_pt: int = 5000  #: Read by no one: EasyEdit saves after a validation.
    opt: str = "Adam"  #: A class of `torch.optim`.
    grad_clip: float = 100.0  #: Bound on the norm of the hypernetwork's gradient.
    log_interval: int = 1000  #: Steps between log lines; so long may a dead gradient go unnoticed.
    eval_log_interval: int = 1000  #: Read by no one for MEND.
    val_interval: int = 1000  #: Steps between validations, after which the archive is saved.
    val_steps: int = 500  #: Steps of each validation.
    #: What has to improve within `early_stop_patience` steps, for this package's trainer:
    #: this loss, or `score` (the sum of the measures). EasyEdit's loop never asks.
    early_stop_key: str = "loss/total_edit_val"
    early_stop_patience: int = 20000  #: See `early_stop_key`.
    final_eval: bool = True  #: Validate the saved archive when the run is over.
    eval_only: bool = False  #: Validate, and train nothing.
    debug: bool = False  #: Save nothing, unless `save`.
    save: bool = False  #: With `debug`: save all the same.
    silent: bool = False  #: EasyEdit's trainer logs less.
    verbose: bool = True  #: Read by no one for MEND.

    # Output
    results_dir: str = "./results"  #: EasyEdit's trainer writes archive and results below it.

    # This package
    #: Handed to `from_pretrained` when EasyEdit loads the model for this method: `device_map` (a
    #: name, or a mapping), `max_memory`, `dtype`, `attn_implementation`, `quantization_config`,
    #: `offload_folder`, `distributed_config`.
    model_kwargs: dict[str, Any] | None = None
    #: Where the hypernetwork lives: a number or a device's name. Default: beside the highest
    #: target. The device with room left is seldom the one with the targets.
    network_device: int | str | None = None
    #: `weight`: the update is written; `output`: it is added to the layer's output.
    apply: str = "weight"
    #: How much memory edited weights may take that would otherwise lie on disk: bytes, or
    #: `2GiB`, `500MB` and the like. Default: no limit. `0`: nothing stays in memory.
    overlay_limit: int | str | None = None
    #: Training compares each update with the true gradient (`grad/true_mag`, `true_std`, `diff`,
    #: `cos`).
    gradient_diagnostics: bool = False
    #: How several requests become one update: `least_squares`, `sum`, or `mean_loss` (EasyEdit's
    #: form). Default: as the archive says, or `least_squares`; see [batches](batches.md).
    aggregate: str | None = None
    #: Options of `least_squares`, a mapping; see [batches](batches.md).
    aggregate_options: dict[str, Any] | None = None
    #: How much memory the rows and systems of a batch may take: bytes, or `2GiB` and the like.
    batch_limit: int | str = "2GiB"
    #: Labels have the special tokens that EasyEdit leaves in them; `false`: they are left out.
    special_tokens_in_labels: bool = True
    #: How many times its own length a trained edit may get where the model would not give its
    #: target yet; 1 leaves every edit as MEND makes it. See [what edits reach](quality.md).
    max_step: float = 1.0
    #: Edit with the identity network and a step that is searched for each request.
    untrained: bool = False
    #: The longest step of an untrained edit, as a share of each weight's norm.
    max_relative_norm: float = 0.05
    #: How many times the shortest step that brings the answer an untrained edit takes.
    step_margin: float = 2.0

    # Name of the method
    alg_name: str = METHOD  #: `MEND_PARALLEL`, or `MEND` as in EasyEdit's files, for its editors.
    alg: str = METHOD  #: The same for EasyEdit's trainers; one of the two is enough.

    def __post_init__(self) -> None:
        problems = problems_with(vars(self))
        if problems:
            raise HparamsError("; ".join(problems))
        for name in METHOD_FIELDS:
            setattr(self, name, METHOD)

    @property
    def overlay_bytes(self) -> int | None:
        """`overlay_limit` in bytes, None for no limit; raises HparamsError for what is no size."""
        return (
            None
            if self.overlay_limit is None
            else size_in_bytes("overlay_limit", self.overlay_limit)
        )

    @property
    def batch_bytes(self) -> int:
        """`batch_limit` in bytes; raises HparamsError for what is no size."""
        return size_in_bytes("batch_limit", self.batch_limit)

    @property
    def preserved_text(self) -> str | None:
        """The file of unrelated text that `aggregate_options` name, if they name one."""
        named = (self.aggregate_options or {}).get("preserved_text")
        return None if named is None else os.fspath(named)

    def aggregation(self, kept: Mapping[str, Any]) -> Aggregate:
        """How the updates of several requests become one.

        What is set here comes before what an archive keeps (`kept`), and both before the defaults.
        With least squares it has the lines of preserved text. Raises HparamsError for an option
        that cannot be used.
        """
        values = {**kept, **batch_options(vars(self))}
        options = Aggregate.from_values(values, "the archive's options for batches")
        if options.how != "least_squares":
            return replace(options, preserved_text=None)
        if options.preserved_text is None or self.preserved_text is not None:
            return replace(options, preserved_text=lines_of(self.preserved_text))
        return options

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
                    converted[name] = converted_to(str(fields[name].type), value)
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
        return {**defaults, **converted}, problems + problems_with(converted)


@dataclass(kw_only=True)
class MENDParallelHyperParams(MendHparams):
    """Hyperparameters for editing: what `BaseEditor.from_hparams` and `MendParallel` take."""


@dataclass(kw_only=True)
class MENDParallelTrainingHparams(MendHparams):
    """Hyperparameters for training the hypernetwork, by EasyEdit's `EditTrainer` or by this
    package's trainer (`mend-parallel train`), which alone heeds the fields of its own.
    """

    #: On how many texts that shall not change each edit of a step is tried.
    locality_examples: int = 1
    #: Of those, how many are about another subject of the same relation.
    neighbour_share: float = 0.6
    #: At how many positions of such a text predictions are compared, at most.
    locality_positions: int = 6
    #: How many edits are seen for the network's statistics before the first step.
    statistics_examples: int = 1000
    #: How much memory hidden states below the lowest target may take, and then how much disk.
    trunk_memory: int | str = "1GiB"
    trunk_disk: int | str = 0  #: The same on disk; `0` for both: every step runs the whole model.
    #: Where those on disk are kept for the next run. Default: a temporary file.
    trunk_folder: str | None = None
    #: How `lr` and `lr_lr` change over a run: `constant`, `linear`, `cosine`, as in transformers.
    lr_schedule: str = "constant"
    #: How many steps in a row may have a gradient that is not a number, before the run stops.
    nan_limit: int = 10

    @property
    def trunk_bytes(self) -> tuple[int, int]:
        """`trunk_memory` and `trunk_disk` in bytes."""
        memory = size_in_bytes("trunk_memory", self.trunk_memory)
        return memory, size_in_bytes("trunk_disk", self.trunk_disk)
