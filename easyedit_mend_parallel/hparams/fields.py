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
from easyedit_mend_parallel.forward.tokenizing import AUTO, EASYEDIT
from easyedit_mend_parallel.hparams.recorded import with_recorded
from easyedit_mend_parallel.hparams.values import (
    HOST_METHOD,
    METHOD,
    METHOD_FIELDS,
    batch_options,
    converted_to,
    network_options,
    problems_with,
    read_values,
    size_in_bytes,
)
from easyedit_mend_parallel.method.hypernetwork import HypernetworkConfig
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_text import lines_of

__all__ = ["HOST_METHOD", "METHOD", "MENDParallelHyperParams", "MendHparams"]

Hparams = TypeVar("Hparams", bound="MendHparams")


@dataclass(kw_only=True)
class MendHparams:
    """The fields for editing and training: those of EasyEdit's MEND, and this package's own.

    A field without a default is required. Those that a safetensors archive records are None until
    `targets_and_network` asks for them. The `#:` comment of each field says what it means. `make
    docs` writes these comments into docs/configuration.md; a test checks that none is missing.
    """

    # Model
    #: Path or hub id of the model; in Python also a pair `(model, tokenizer)`.
    model_name: Any
    #: Names of the weights to edit (the targets), e.g. `model.layers.31.mlp.up_proj.weight`.
    inner_params: list[str] | None = None
    #: File with the trained hypernetwork, written by EasyEdit's trainer or by `save_archive`.
    #: Training continues from it; with `null` it starts with a new network.
    archive: str | None
    model_class: str = "AutoModelForCausalLM"  #: Class of the model, in transformers.
    tokenizer_class: str = "AutoTokenizer"  #: Class of the tokenizer, in transformers.
    #: Path or hub id of the tokenizer, for training and the command line. Default: `model_name`.
    tokenizer_name: str | None = None
    #: Load the model with `device_map="auto"`, unless `model_kwargs` have a device map.
    model_parallel: bool = False
    #: Device to which EasyEdit's evaluation sends its prompts; accelerate moves them on.
    device: int | str = 0
    #: On the command line: load the model in fp16, unless `model_kwargs` have a dtype. In
    #: EasyEdit's trainer, with `no_grad_layers`: bfloat16.
    half: bool = False

    # Method
    rank: int | None = None  #: Maximum rank of each layer of the hypernetwork.
    #: Initial value of each target's learned rate; an archive's value replaces it.
    edit_lr: float | None = None
    shared: bool | None = None  #: Targets of the same shape share one network.
    combine: bool | None = None  #: One network for x and δ together; `false`: one for each.
    norm: bool | None = None  #: Normalise token rows with the statistics in the archive.
    init: str | None = None  #: Initial layers: `id` (the identity) or `xavier`.
    mlp_class: str | None = None  #: `IDMLP`. EasyEdit itself fails with `MLP`.
    n_hidden: int | None = None  #: Number of layers of the network, minus one.
    one_sided: bool | None = None  #: With `combine: false`: transform only the narrower of x and δ.
    x_only: bool | None = None  #: With `combine: false`: transform only x.
    delta_only: bool | None = None  #: With `combine: false`: transform only δ.
    hidden_dim: int | None = None  #: Unused: the layers of `IDMLP` are as wide as the rows.
    act: str = "relu"  #: Unused: `IDMLP` always uses ReLU.
    lr: float = 1e-6  #: Learning rate of the hypernetwork.
    lr_lr: float = 1e-4  #: Learning rate of the targets' learned rates.
    #: Factor on every update, as in EasyEdit's release; EasyEdit's repository ignores it.
    lr_scale: float = 1.0
    cedit: float = 0.1  #: Weight of the edit loss in training.
    cloc: float = 1.0  #: Weight of the locality loss in training.
    cbase: float = 1.0  #: With `train_base`: weight of the base model's own loss.
    dropout: float | None = 0.0  #: Dropout of the model in EasyEdit's trainer.
    train_base: bool = False  #: Also train the model itself (EasyEdit's trainer only).
    no_grad_layers: Any = None  #: EasyEdit's trainer sets this attribute on the model.
    seed: int = 42  #: Seed of a training run.

    # Training
    batch_size: int = 1  #: Edits per training step; in `batch_edit`, requests per update.
    val_batch_size: int = 5  #: Records per validation step, in EasyEdit's trainer.
    accumulate_bs: int = 10  #: Batches whose gradients are accumulated for one optimizer step.
    max_epochs: int | None = None  #: Maximum number of passes over the data.
    max_iters: int | None = None  #: Maximum number of steps; EasyEdit's trainer makes one less.
    #: Longest text in tokens: EasyEdit's data set truncates longer ones, `mend-parallel train`
    #: leaves their facts out.
    max_length: int = 40
    max_output_length: int | None = None  #: Unused by MEND.
    #: Steps between checkpoints of `mend-parallel train`. EasyEdit's trainer saves after
    #: validations.
    model_save_pt: int = 5000
    opt: str = "Adam"  #: A class of `torch.optim`.
    #: Maximum norm of the hypernetwork's gradient; a larger gradient is scaled to it.
    grad_clip: float = 100.0
    #: Steps between log lines; also how often zero gradients are checked.
    log_interval: int = 1000
    eval_log_interval: int = 1000  #: Unused by MEND.
    val_interval: int = 1000  #: Steps between validations; the archive is saved after them.
    val_steps: int = 500  #: Steps per validation, in EasyEdit's trainer.
    #: The figure by which `mend-parallel train` keeps the best archive and stops early: this loss,
    #: or `score` (the sum of the four measures). EasyEdit's trainer never stops early.
    early_stop_key: str = "loss/total_edit_val"
    #: Steps without improvement before `mend-parallel train` stops.
    early_stop_patience: int = 20000
    final_eval: bool = True  #: Validate the saved archive after the last step.
    eval_only: bool = False  #: Validate only; do not train.
    debug: bool = False  #: EasyEdit's trainer saves nothing, unless `save` is set.
    save: bool = False  #: With `debug`: save nevertheless.
    silent: bool = False  #: EasyEdit's trainer logs less.
    verbose: bool = True  #: Unused by MEND.

    # Output
    results_dir: str = "./results"  #: Folder for the archive and results of EasyEdit's trainer.

    # This package
    #: Arguments for `from_pretrained` when the model is loaded for this method: `device_map` (a
    #: name, or a mapping), `max_memory`, `dtype`, `attn_implementation`, `quantization_config`,
    #: `offload_folder`, `distributed_config`.
    model_kwargs: dict[str, Any] | None = None
    #: Device of the hypernetwork: a number or a device's name. Default: the device of the highest
    #: target. Choose a device with free memory.
    network_device: int | str | None = None
    #: `weight`: write the update into the weight. `output`: add it to the layer's output.
    #: `scoped`: add it there only for texts about the edited fact. See [scopes](scopes.md).
    apply: str = "weight"
    #: Memory for the edited weights of targets on disk, whose files are never modified: bytes, or a
    #: size such as `2GiB` or `500MB`. Above it, edited weights go to private files. Default: no
    #: limit.
    overlay_limit: int | str | None = None
    #: Memory for the rows and keys of scoped edits: bytes, or a size such as `4GiB`. An edit that
    #: would exceed it is refused.
    scope_memory: int | str = "4GiB"
    #: In EasyEdit's trainer: compare each update with the true gradient (`grad/true_mag`,
    #: `true_std`, `diff`, `cos`).
    gradient_diagnostics: bool = False
    #: How several requests become one update: `least_squares`, `sum`, or `mean_loss` (as in
    #: EasyEdit). Default: what the archive says, or `least_squares`. See [batches](batches.md).
    aggregate: str | None = None
    #: Options of `least_squares`, a mapping. See [batches](batches.md).
    aggregate_options: dict[str, Any] | None = None
    #: Memory for the rows and systems of a batch: bytes, or a size such as `2GiB`.
    batch_limit: int | str = "2GiB"
    #: How a further edit goes into a model that has edits: `solve` solves it together with them;
    #: `add` adds its update, as MEND does. See [sequences](sequences.md).
    sequence: str = "solve"
    #: Memory for the rows and systems of a model's edits, for `sequence: solve`: bytes, or `4GiB`
    #: and the like. Past it the oldest edits can only be undone all together.
    sequence_memory: int | str = "4GiB"
    #: The largest share of earlier edits that a further edit may make fail; one that exceeds it is
    #: refused. Default: not checked.
    max_lost: float | None = None
    #: After each edit through `BaseEditor`, ask the model for the edit's requests and for up to 32
    #: earlier ones, and warn of those that do not hold.
    verify: bool = True
    #: Keep special tokens in the labels, as EasyEdit does; `false` removes them.
    special_tokens_in_labels: bool = True
    #: What stands between a prompt and its target: `auto` (a space, except after white space, an
    #: opening bracket or a script without spaces), `always`, `never`; labels are the target's
    #: tokens in the text of both. `easyedit`: a space, and the target tokenized by itself. Default:
    #: `easyedit` where the file's method is `MEND`, otherwise `auto`.
    target_space: str | None = None
    #: Put requests into the tokenizer's chat template; labels are the answer and the end of the
    #: turn.
    chat: bool = False
    #: Number of steps of an edit, each computed on the model with the previous steps. More than one
    #: helps with target texts of many tokens. `1` is MEND.
    inner_steps: int = 1
    #: Scale a failed edit by up to this factor, until the model gives its target. `1`: never. See
    #: [what edits reach](quality.md).
    max_step: float = 1.0
    #: What to do with an update after which its own target is less likely than before: `refuse` it
    #: with an error, `warn` and write it, or `ignore` (no check, which saves a forward pass).
    #: Default: `refuse`; in EasyEdit's editors `warn`, because an error would end their whole run.
    on_worse: str | None = None
    #: Edit without a trained hypernetwork: along each request's gradient, by the smallest step that
    #: yields the target. See [untrained](untrained.md).
    untrained: bool = False
    #: Maximum step of an untrained edit, as a fraction of each weight's norm.
    max_relative_norm: float = 0.05
    #: Step size of an untrained edit, as a multiple of the smallest that yields the target.
    step_margin: float = 2.0

    # Name of the method
    alg_name: str = METHOD  #: For EasyEdit's editors: `MEND_PARALLEL`, or `MEND`.
    alg: str = METHOD  #: For EasyEdit's trainers. `alg` or `alg_name` is enough.

    def __post_init__(self) -> None:
        problems = problems_with(vars(self))
        if problems:
            raise HparamsError("; ".join(problems))
        if self.target_space is None:
            of_host = HOST_METHOD in (self.alg, self.alg_name)
            self.target_space = EASYEDIT if of_host else AUTO
        for name in METHOD_FIELDS:
            setattr(self, name, METHOD)

    @property
    def edits_untrained(self) -> bool:
        """Whether edits use no trained hypernetwork."""
        return self.untrained

    @property
    def overlay_bytes(self) -> int | None:
        """`overlay_limit` in bytes, None for no limit. Raises HparamsError if it is not a size."""
        return (
            None
            if self.overlay_limit is None
            else size_in_bytes("overlay_limit", self.overlay_limit)
        )

    @property
    def scope_bytes(self) -> int:
        """`scope_memory` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("scope_memory", self.scope_memory)

    @property
    def batch_bytes(self) -> int:
        """`batch_limit` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("batch_limit", self.batch_limit)

    @property
    def sequence_bytes(self) -> int:
        """`sequence_memory` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("sequence_memory", self.sequence_memory)

    @property
    def preserved_text(self) -> str | None:
        """The file of preserved text that `aggregate_options` name; None if they name none."""
        named = (self.aggregate_options or {}).get("preserved_text")
        return None if named is None else os.fspath(named)

    def aggregation(self, kept: Mapping[str, Any]) -> Aggregate:
        """How the updates of several requests become one.

        Values set here override those in the archive (`kept`), which override the defaults. For
        least squares the result has the lines of preserved text. Raises HparamsError for an
        invalid option.
        """
        values = {**kept, **batch_options(vars(self))}
        options = Aggregate.from_values(values, "the archive's options for batches")
        if options.how != "least_squares":
            return replace(options, preserved_text=None)
        if options.preserved_text is None or self.preserved_text is not None:
            return replace(options, preserved_text=lines_of(self.preserved_text))
        return options

    def network_config(self, network: HypernetworkConfig | None = None) -> HypernetworkConfig:
        """The options of the hypernetwork that are set here, and otherwise those of `network`, or
        the defaults. Raises HparamsError for an invalid combination.
        """
        return network_options(vars(self), network)

    def targets_and_network(self) -> tuple[list[str], HypernetworkConfig]:
        """The names of the targets, and the options of the hypernetwork.

        Reads from the archive what is not set here. Raises HparamsError if both say something and
        differ, or if neither does; ArchiveError if the archive cannot be read.
        """
        values, problems = with_recorded(vars(self), untrained=self.edits_untrained)
        if problems:
            raise HparamsError("; ".join(problems))
        return list(values["inner_params"]), network_options(values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_hparams(cls: type[Hparams], hparams_name_or_path: str | Path) -> Hparams:
        """Read a yaml or json file. The ending `.yaml` may be omitted, as in EasyEdit.

        Raises HparamsError if the file is missing or not a mapping, or if keys are missing,
        unknown or of the wrong type. The error lists all such keys.
        """
        values, path = read_values(hparams_name_or_path)
        return cls.from_values(values, str(path))

    @classmethod
    def taken_from(cls: type[Hparams], hparams: Any, options: Mapping[str, Any]) -> Hparams:
        """This package's hyperparameters unchanged, or EasyEdit's with `options` added."""
        if isinstance(hparams, cls):
            return hparams
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in vars(hparams).items() if name in known}
        return cls.from_values({**values, **options}, "EasyEdit's hyperparameters")

    @classmethod
    def from_values(
        cls: type[Hparams], values: dict[str, Any], source: str = "the hyperparameters"
    ) -> Hparams:
        """Hyperparameters from names and values. An HparamsError names `source`."""
        converted, problems = cls.looked_through(values)
        if problems:
            raise HparamsError(f"{source}: " + "; ".join(problems))
        return cls(**converted)

    @classmethod
    def looked_through(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The valid `values`, converted to their fields' types, and the problems of the others.

        Finds unknown and missing keys and wrong types only; `every_problem` finds the rest.
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
                    kind = str(fields[name].type).removesuffix(" | None")
                    problems.append(f"{name} is {value!r}, not a {kind}")
        return converted, problems

    @classmethod
    def every_problem(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """As `looked_through`, and also the problems of values that have the right type.

        The returned values include the defaults of absent fields.
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
