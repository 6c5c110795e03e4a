"""The fields of a hyperparameter file, with their defaults and what each means.

Knows EasyEdit's names of fields, and neither how files are read nor how values are checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easyedit_mend_parallel.hparams.values import METHOD


@dataclass(kw_only=True)
class MendFields:
    """The fields for editing and training: those of EasyEdit's MEND, and this package's own.

    A field without a default is required. Fields that a safetensors archive records are None until
    `MendHparams.targets_and_network` reads them from it. The `#:` comment of a field says what it
    means. `make docs` writes these comments into docs/configuration.md; a test checks that every
    field has one.
    """

    # Model
    #: Path or hub id of the model; in Python also a pair `(model, tokenizer)`.
    model_name: Any
    #: Names of the weights to edit (the targets), e.g. `model.layers.31.mlp.up_proj.weight`; of
    #: experts `….experts.down_proj[7]`, or all of a stack `….experts.down_proj`.
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
    #: Memory for the rows and keys of scoped edits: bytes, or a size such as `4GiB`. Past it, the
    #: rows of the oldest requests lie in temporary files.
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
    #: Memory for the rows, updates and systems of a model's edits, for `sequence: solve`: bytes, or
    #: `4GiB` and the like. Past it the oldest edits can only be undone all together.
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
