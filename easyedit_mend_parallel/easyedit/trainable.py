"""The `EditableModel` that EasyEdit's EditTrainer trains, with this package's method.

Translates between EasyEdit's batches, losses and archives and this package. Computes nothing
itself, and knows nothing of the trainer's loop.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.forward.batch import Batch, without_special_tokens
from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.forward.capture import TokenRows, capture
from easyedit_mend_parallel.forward.predicting import decoder_inputs
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.archive import Archive, named_as_today, with_header
from easyedit_mend_parallel.method.hypernetwork import GradientTransform, Hypernetwork
from easyedit_mend_parallel.plugins.hookspecs import Host
from easyedit_mend_parallel.training.diagnostics import compare, gradient_of, measure
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.weights.placement import is_dispatched, network_home
from easyedit_mend_parallel.weights.target import find_targets
from easyedit_mend_parallel.weights.update import LowRankUpdate, attached

KNOWN_DECODER = "LlamaForCausalLM"
"""A `model_class` that EasyEdit's loss treats as a decoder."""

SelfTrainable = TypeVar("SelfTrainable", bound="Trainable")


@dataclass(frozen=True)
class HostBatch(Batch):
    """A batch of EasyEdit's trainer, as one request, since its loss is one mean over the batch."""

    loss: Callable[[Tensor, Tensor], dict[str, Tensor]]

    def losses(self, logits: Tensor) -> Tensor:
        """EasyEdit's own loss of the edit, (1,)."""
        return self.loss(logits.to(self.labels.device), self.labels)["nll"].reshape(1)

    def losses_on(self, model: nn.Module) -> Tensor:
        return self.losses(self.logits(model))


class Trainable(nn.Module):
    """EasyEdit's `EditableModel` for a model that stays where it is, whole and unchanged.

    `edit` returns an edited one: the same model and network, with low-rank updates that are added
    to the targets' outputs while it is called, and only then. Its `model` is therefore the unedited
    model; call the edited object itself. The model's weights are frozen.

    `options` are fields of this package's hyperparameters, which are added if `config` is one of
    EasyEdit's own (`replace_mend`).
    """

    options: ClassVar[Mapping[str, Any]] = {}
    model: Any
    edit_loss_fn: Callable[..., dict[str, Tensor]]

    def __init__(self, model: Any, config: Any, model_constructor: Callable[[], Any]) -> None:
        super().__init__(model, config, model_constructor)
        if not model.config.is_encoder_decoder:
            self.edit_loss_fn = _shifting(self.edit_loss_fn)
        hparams = MENDParallelTrainingHparams.taken_from(config, self.options)
        self.special_tokens_in_labels = hparams.special_tokens_in_labels
        model.requires_grad_(False)
        names, options = hparams.targets_and_network()
        targets = find_targets(model, names)
        self.targets = {target.name: target for target in targets}
        self.network = Hypernetwork(targets, options)
        self.network.to(network_home(model, targets, hparams.network_device))
        self.network_follows = hparams.network_device is None and not is_dispatched(model)
        self.diagnostics = hparams.gradient_diagnostics
        self.watch = GradientWatch(hparams.log_interval)
        self.updates: tuple[dict[str, LowRankUpdate], ...] = ()
        self.steps = 0

    @property
    def mend(self) -> nn.ModuleDict:
        return self.network.mend

    @property
    def edit_lrs(self) -> nn.Parameter:
        return self.network.edit_lrs

    def know_tokenizer(self, tokenizer: Any) -> None:
        """With `special_tokens_in_labels: false`, leave `tokenizer`'s special tokens out of all
        labels from now on, also those of the loss after the edit.

        EasyEdit makes the labels, and its model has no tokenizer. Raises HparamsError if
        `tokenizer` is None.
        """
        if self.special_tokens_in_labels:
            return
        if tokenizer is None:
            raise HparamsError(
                "special_tokens_in_labels is false, and the training set has no tokenizer (`tok`) "
                "that says which tokens are special: set it to true, or use a set that has one"
            )
        self.edit_loss_fn = _without_special(self.edit_loss_fn, list(tokenizer.all_special_ids))

    def outer_parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in EasyEdit's order, which the optimizers' state depends on."""
        return [*self.mend.parameters(), self.edit_lrs]

    def forward(self, **batch: Any) -> Tensor:
        """The logits of a batch from EasyEdit's data sets, on the device of its `input_ids`."""
        with self._attached(self.updates):
            logits = self._batch(batch).logits(self.model)
        return logits.to(batch["input_ids"].device)

    def edit(
        self: SelfTrainable,
        batch: Mapping[str, Any],
        condition: Any = None,
        detach_history: bool = False,
        return_factors: bool = False,
        **loss_options: Any,
    ) -> tuple[SelfTrainable, dict[str, Any]]:
        """This model, edited to predict the batch's labels, and EasyEdit's measurements of it.

        Differentiable in the network (not with `detach_history`). An edit of an edited model adds
        to it: the rows are those of the edited model, and its earlier updates are constants.

        In training mode the rows first enter the statistics, as in EasyEdit. EasyEdit then
        normalises each target's rows with the statistics up to that target. Here the rows of all
        targets enter first, so the updates of one call differ slightly, and the statistics after it
        are equal. Raises TrainingError if the statistics have fewer than two rows.
        """
        with self._attached(tuple(_detached(updates) for updates in self.updates)):
            rows, _ = capture(
                self.model, list(self.targets.values()), self._batch(batch, **loss_options)
            )
        if self.network.training:
            self.network.observe(rows)
            self._refuse_too_few_rows()
        updates = self.network(rows)
        if self.network.training:
            self.steps += 1
            self.watch.follow(updates)
        edited = copy.copy(self)
        edited.updates = (*self.updates, _detached(updates) if detach_history else updates)
        info = self._measurements(rows, updates)
        if return_factors:
            info["factors"] = self._factors(rows, updates)
        return edited, info

    def to(self: SelfTrainable, device: Any) -> SelfTrainable:  # type: ignore[override]
        """Move model and network to `device`, except a dispatched model and a placed network."""
        if not is_dispatched(self.model):
            self.model.to(device)
        if self.network_follows:
            self.network.to(device)
        return self

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """The entry "model" of EasyEdit's archives.

        `model_config` is a plain dictionary, not an object as in EasyEdit, which torch 2.6 and
        later refuses to load. It also says how the labels were made.
        """
        about = {"special_tokens_in_labels": self.special_tokens_in_labels}
        config = with_header(self.model.config.to_dict(), about)
        return {**self.network.state_dict(), "model_config": config}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Load a network of EasyEdit's or ours. Raises ArchiveError if it does not fit.

        Also loads the statistics, so a resumed run continues to count where the saved one stopped.
        """
        given = Path("to resume from")
        Archive(given, named_as_today(given, state_dict)).load_into(self.network, untrained=True)

    def _batch(self, batch: Mapping[str, Any], **loss_options: Any) -> HostBatch:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if self.model.config.is_encoder_decoder:
            labels = batch["labels"]
            inputs["decoder_input_ids"] = decoder_inputs(self.model, labels)
            if "decoder_attention_mask" in batch:
                inputs["decoder_attention_mask"] = batch["decoder_attention_mask"]
        return HostBatch(
            called_with(self.model, inputs),
            batch["labels"],
            torch.zeros(len(batch["input_ids"]), dtype=torch.long),
            lambda logits, labels: self.edit_loss_fn(self.config, logits, labels, **loss_options),
        )

    @contextmanager
    def _attached(self, updates: tuple[dict[str, LowRankUpdate], ...]) -> Iterator[None]:
        with ExitStack() as stack:
            for one_edit in updates:
                stack.enter_context(attached(self.model, self.targets, one_edit))
            yield

    def _refuse_too_few_rows(self) -> None:
        for shape, transform in self.mend.items():
            rows = cast(GradientTransform, transform).k.item()
            if rows < 2:
                raise TrainingError(
                    f"the statistics of the targets of {shape} have {rows:.0f} row(s) so far, and "
                    "a standard deviation needs two: start with a batch in which two tokens or "
                    "more reach the loss"
                )

    def _without_rate(self, updates: Mapping[str, LowRankUpdate]) -> dict[str, LowRankUpdate]:
        rates = self.edit_lrs.detach() * self.network.config.lr_scale
        return {
            name: LowRankUpdate(
                update.keys.detach(),
                update.values.detach() / rate.to(update.values.device),
                update.request,
            )
            for rate, (name, update) in zip(rates, updates.items(), strict=True)
        }

    @torch.no_grad()
    def _measurements(
        self, rows: Mapping[str, TokenRows], updates: Mapping[str, LowRankUpdate]
    ) -> dict[str, Any]:
        """EasyEdit's figures for each target's transformed gradient (`pseudo`), before its rate;
        with diagnostics also for the true gradient, and for both together."""
        found: dict[str, Tensor] = {}
        for index, (name, pseudo) in enumerate(self._without_rate(updates).items()):
            of_target = {f"pseudo_{key}": value for key, value in measure(pseudo).items()}
            if self.diagnostics:
                true = gradient_of(rows[name])
                of_target |= {f"true_{key}": value for key, value in measure(true).items()}
                of_target |= compare(pseudo, true)
            found |= {f"grad/{key}{index}": value for key, value in of_target.items()}
        home = self.edit_lrs.device
        values = torch.stack([value.to(home) for value in found.values()]).tolist()  # waits once
        return dict(zip(found, values, strict=True))

    def _factors(
        self, rows: Mapping[str, TokenRows], updates: Mapping[str, LowRankUpdate]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """{target: (x̃, δ̃)} without rows that are not live, as in EasyEdit."""
        return {
            name: (update.keys[rows[name].live], update.values[rows[name].live])
            for name, update in self._without_rate(updates).items()
        }


def trainable_class(host: Host, options: Mapping[str, Any] | None = None) -> type[Trainable]:
    """The class that `host`'s trainers construct as `Class(model, config, model_constructor)`."""
    module = sys.modules[f"{host.package.__name__}.trainer.algs.editable_model"]
    made: type[Trainable] = type(
        "MENDParallel", (Trainable, module.EditableModel), {"options": dict(options or {})}
    )
    return made


def _shifting(loss: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """EasyEdit's loss, in its form for decoders.

    EasyEdit compares each label with the prediction before it only if `model_class` contains llama
    or gpt (or `model_name` one of a few other families). For others, such as AutoModelForCausalLM,
    it compares the labels with the first positions of the sentence.
    """

    def shifted(config: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        as_decoder = copy.copy(config)
        as_decoder.model_class = KNOWN_DECODER
        return loss(as_decoder, *args, **kwargs)

    return shifted


def _without_special(
    loss: Callable[..., dict[str, Tensor]], special_ids: list[int]
) -> Callable[..., dict[str, Tensor]]:
    """The loss of the labels that are not special tokens."""

    def without(config: Any, predicted: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return loss(config, predicted, without_special_tokens(labels, special_ids), **kwargs)

    return without


def _detached(updates: Mapping[str, LowRankUpdate]) -> dict[str, LowRankUpdate]:
    return {name: update.detach() for name, update in updates.items()}
