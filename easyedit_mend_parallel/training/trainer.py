"""Trains a hypernetwork for a model in any placement, in one process or several.

The loop samples, computes the loss, and steps; at intervals it logs, evaluates, keeps the best
archive and writes a checkpoint. `sampling.py` samples, and `objective.py` has the loss. Knows no
files of facts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.evaluation.measures import Scores, measure_edits, scores_of
from easyedit_mend_parallel.files.interrupts import interrupts_held, interrupts_pass
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.forward.tokenizing import AUTO
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.archive import load_archive, save_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.training.checkpoint import (
    Progress,
    load_checkpoint,
    refusing_full_disks,
    save_checkpoint,
)
from easyedit_mend_parallel.training.gradient_watch import GradientWatch
from easyedit_mend_parallel.training.length_filter import Data, fitting_data
from easyedit_mend_parallel.training.lockstep import (
    ask_in_step,
    refuse_launcher,
    refuse_untrainable,
)
from easyedit_mend_parallel.training.metrics import Metrics, selection_value
from easyedit_mend_parallel.training.objective import Measured, measure_step, request_of
from easyedit_mend_parallel.training.optimization import Rates, make_optimizer
from easyedit_mend_parallel.training.preparation import (
    draw_continuations,
    gather_statistics,
    keep_states,
    make_solver,
    measuring,
    options_to_keep,
    solve_options,
)
from easyedit_mend_parallel.training.processes import Processes, accelerator_of
from easyedit_mend_parallel.training.run_configuration import comparable, configuration_of
from easyedit_mend_parallel.training.sampling import Sample, Sampler
from easyedit_mend_parallel.training.screen import Screen
from easyedit_mend_parallel.training.solved_step import measure_solved_step
from easyedit_mend_parallel.training.solving import StepSolver, group_sizes
from easyedit_mend_parallel.weights.engines import reshard
from easyedit_mend_parallel.weights.placement import network_home
from easyedit_mend_parallel.weights.target import find_targets

log = logging.getLogger(__name__)

ARCHIVE, CHECKPOINT = "archive.safetensors", "last.safetensors"
"""Files of a run: the best archive so far, and the checkpoint to resume from."""
LOGGED = ("edit", "locality", "continuation", "success", "unchanged")
"""The figures of a step: see `objective.Measured`."""


class Trainer:
    """One training run of `hparams` on `model`, whose results go to `folder`.

    A step takes `batch_size` edits at once, `accumulate_bs` times, in each process. Runs for
    `max_iters` steps or `max_epochs` epochs, at most `minutes`; evaluates every `val_interval`
    steps, keeps the archive that is best by `early_stop_key`, and stops after `early_stop_patience`
    steps without a better one. With `resume` it continues from the folder's checkpoint, with the
    same steps as an uninterrupted run. `archive` names a network to start from.

    The model's weights are frozen and do not change. Raises DataError, HparamsError,
    ArchiveError, PlacementError or TrainingError.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        hparams: MENDParallelTrainingHparams,
        data: Data,
        folder: Path,
        *,
        accelerator: Accelerator | None = None,
        minutes: float | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        refuse_untrainable(model)
        self.hparams, self.folder, self.minutes, self.resume = hparams, folder, minutes, resume
        self.processes = Processes(accelerator or accelerator_of())
        refuse_launcher(self.processes.accelerator, model)
        self.screen = Screen(quiet or not self.processes.accelerator.is_main_process)
        reshard(model)  # of weights that FSDP2 left whole, the shards are parameters of their own
        self.model = model.requires_grad_(False).eval()
        names, config = hparams.targets_and_network()
        self.targets = find_targets(model, names)
        self.texts = Texts(
            model,
            tokenizer,
            max_length=hparams.max_length,
            special_tokens_in_labels=hparams.special_tokens_in_labels,
            target_space=hparams.target_space or AUTO,
        )
        self.data = fitting_data(data.worded(tokenizer, hparams), self.texts)
        self.sampling = Sampler(
            self.data.train,
            self.data.unrelated,
            per_step=hparams.batch_size * hparams.accumulate_bs * self.processes.count,
            neighbour_share=hparams.neighbour_share,
            locality_examples=hparams.locality_examples,
            seed=hparams.seed,
        )
        self.steps = self._planned_steps()
        torch.manual_seed(hparams.seed)
        self.network = Hypernetwork(self.targets, config)
        self.network.to(network_home(model, self.targets, hparams.network_device))
        self.optimizer = make_optimizer(hparams.opt, self.network, hparams.lr, hparams.lr_lr)
        self.rates = Rates(hparams.lr_schedule, self.optimizer, self.steps)
        identity = configuration_of(
            hparams,
            self.targets,
            processes=self.processes.count,
            examples=len(self.data.train),
            steps=self.steps,
        )
        self.progress = Progress(configuration=identity)
        self.continued: dict[Text, Text] = {}
        self.solver: StepSolver | None = None
        self.solving: Aggregate | None = None
        self.evaluations: list[Scores] = []
        self._value = partial(selection_value, hparams)
        if self.data.validation:
            self._value([])  # refuses another trainer's key now, not after the first evaluation

    @interrupts_held()
    def run(self) -> Path:
        """Train. Returns the path of the best archive (the last one if nothing was evaluated)."""
        accelerator = self.processes.accelerator
        self._begin()
        optimizer = accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        metrics = Metrics(
            self.folder if accelerator.is_main_process else None,
            self.progress.step,
            accelerator.log if accelerator.trackers else None,
        )
        watch = GradientWatch(self.hparams.log_interval)
        started, bad, seen = time.monotonic(), 0, torch.zeros(len(LOGGED))
        logged = self.progress.step
        with self.screen.steps(self.steps, self.progress.step):
            while self.progress.step < self.steps and not self._is_over(started):
                self.rates.set_for(self.progress.step)
                figures, norm = self._step(watch)
                if torch.isfinite(norm):
                    bad, seen = 0, seen + figures
                    optimizer.step()
                else:
                    bad = self._not_a_number(bad + 1)
                self.progress.step += 1
                step = self.progress.step
                if self._every(self.hparams.log_interval):
                    mean = self.processes.mean(seen.to(self.network.edit_lrs.device))
                    mean = mean / max(1, step - logged)
                    values = dict(zip(LOGGED, mean.tolist(), strict=True))
                    metrics.add(step, "train", values)
                    self.screen.show(step, values)
                    seen, logged = torch.zeros(len(LOGGED)), step
                else:
                    self.screen.show(step)
                if self._every(self.hparams.val_interval):
                    self._evaluate(metrics)
                if self._every(self.hparams.model_save_pt):
                    self._save_checkpoint()
        watch.refuse_dead()
        if self.hparams.final_eval and not self._every(self.hparams.val_interval):
            self._evaluate(metrics)
        self._save_checkpoint()
        if not self.data.validation:
            self._save_archive(self.folder / ARCHIVE)
        for tracker in accelerator.trackers:
            tracker.finish()
        self.processes.wait()
        return self.folder / ARCHIVE

    def _step(self, watch: GradientWatch) -> tuple[Tensor, Tensor]:
        """Compute the gradients of one step; returns its figures and the gradients' norm."""
        hparams, accelerator = self.hparams, self.processes.accelerator
        self.optimizer.zero_grad(set_to_none=True)
        figures = torch.zeros(len(LOGGED))
        parts = self._own_parts(self.sampling.step(self.progress.step))
        for together in [[part] for part in parts] if self.solver is None else [parts]:
            with accelerator.autocast():
                found = self._measured(together)
            watch.follow(found.updates)
            share = len(together) / hparams.accumulate_bs
            with interrupts_pass():
                accelerator.backward(found.loss * share)
            values = [getattr(found, name) for name in LOGGED]
            figures += torch.stack([v.detach().cpu() for v in values]) * share
        parameters = list(self.network.parameters())
        self.processes.average_gradients(parameters)
        watch.follow_parameters(self.network.mend.parameters())
        norm: Tensor = accelerator.clip_grad_norm_(parameters, hparams.grad_clip)
        return figures, norm

    def _measured(self, parts: Sequence[Sequence[Sample]]) -> Measured:
        """The losses of these parts of a step: of several if their edits are solved together."""
        given = (self.texts, self.targets, self.network)
        how = measuring(self.hparams, self.continued)
        if self.solver is None:
            return measure_step(*given, parts[0], how)
        edits, seed = sum(map(len, parts)), parts[0][0].seed
        sizes = group_sizes(edits, self.hparams.solved_edits, seed)
        return measure_solved_step(
            *given, parts, how, self.solver, sizes, self.processes.loss_scale
        )

    def _own_parts(self, drawn: Sequence[Sample]) -> list[Sequence[Sample]]:
        """This process's part of a step, `batch_size` at a time."""
        size, count = self.hparams.batch_size, self.hparams.accumulate_bs
        first = self.processes.index * size * count
        return [drawn[first + n * size : first + (n + 1) * size] for n in range(count)]

    def _begin(self) -> None:
        """Prepare network and optimizer for the first step of this run."""
        checkpoint = self.folder / CHECKPOINT
        if self.resume:
            found = load_checkpoint(checkpoint, self.network, self.optimizer)
            if comparable(found.configuration) != self.progress.configuration:
                raise TrainingError(
                    f"{checkpoint} was made with other hyperparameters or data: give those, or "
                    "another folder"
                )
            self.progress = replace(found, configuration=self.progress.configuration)
        elif checkpoint.exists():
            raise TrainingError(
                f"{self.folder} already has a run: continue it (--resume), or name another folder"
            )
        self.processes.agree(repr(self.progress), "configurations or data")
        self.processes.accelerator.init_trackers("mend")
        given = (self.hparams, self.processes, self.screen)
        # A resumed run also computes the states of earlier steps: in other batches, bits differ.
        drawn = partial(self.sampling.drawn, self.steps)
        self.solving = options = solve_options(self.hparams)
        ask_in_step(self.texts, self.targets, request_of(self.sampling.step(0)[0]))
        self.continued = draw_continuations(self.texts, drawn(), options, *given)
        keep_states(self.texts, self.targets, drawn(), self.continued, *given)
        self.solver = make_solver(self.texts, self.targets, self.continued, options, self.hparams)
        if self.resume:
            return
        if self.hparams.archive is not None:
            archive = load_archive(self.hparams.archive)
            archive.say_other_labels(self.hparams.special_tokens_in_labels)
            archive.load_into(self.network, untrained=True)
        if self.network.config.norm:
            gather_statistics(
                self.network, self.texts, self.data, self.hparams, self.processes, self.screen
            )

    def _evaluate(self, metrics: Metrics) -> None:
        """Evaluate on the validation part; keep the archive if it is the best so far."""
        if not self.data.validation:
            return
        share = (self.processes.index, self.processes.count)
        with self.screen.counting("evaluation", -(-len(self.data.validation) // share[1])) as count:
            own = measure_edits(
                self.texts,
                self.targets,
                self.network,
                self.data.validation,
                self.data.validation_unrelated,
                batch_size=self.hparams.val_batch_size,
                share=share,
                progress=count,
            )
        self.evaluations = scores_of(self.processes.items(own))
        for scores in self.evaluations:
            metrics.add(self.progress.step, scores.split, scores.flat())
            self.screen.scores(self.progress.step, scores)
        value = self._value(self.evaluations)
        best = self.progress.best
        if best is None or value < best:
            self.progress.best, self.progress.best_step = value, self.progress.step
            self._save_archive(self.folder / ARCHIVE)

    def _is_over(self, started: float) -> bool:
        late = self.minutes is not None and time.monotonic() - started > 60 * self.minutes
        progress = self.progress
        tired = (
            progress.best is not None
            and progress.step - progress.best_step >= self.hparams.early_stop_patience
        )
        own = torch.tensor([float(late)], device=self.network.edit_lrs.device)
        return tired or bool(self.processes.mean(own) > 0)

    def _not_a_number(self, bad: int) -> int:
        """Skip a step whose gradient is not finite; raise if there were too many in a row."""
        if bad >= self.hparams.nan_limit:
            raise TrainingError(
                f"the loss or its gradient was not a number in {bad} steps in a row, up to step "
                f"{self.progress.step}. The last checkpoint is kept: lower lr and lr_lr, or use "
                "another dtype (float16 overflows where bfloat16 does not)"
            )
        log.warning("step %d is left out: its gradient is not a number", self.progress.step)
        return bad

    def _save_checkpoint(self) -> None:
        if self.processes.accelerator.is_main_process:
            save_checkpoint(self.folder / CHECKPOINT, self.progress, self.network, self.optimizer)

    def _save_archive(self, path: Path) -> None:
        if self.processes.accelerator.is_main_process:
            about: dict[str, Any] = {
                "base": getattr(self.model.config, "name_or_path", ""),
                "step": self.progress.step,
                "special_tokens_in_labels": self.hparams.special_tokens_in_labels,
                "scores": [scores.to_dict() for scores in self.evaluations],
                **options_to_keep(self.solving),
            }
            with refusing_full_disks(path):
                save_archive(path, self.network, **about)

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.progress.step % interval == 0

    def _planned_steps(self) -> int:
        if self.hparams.max_iters is not None:
            return self.hparams.max_iters
        if self.hparams.max_epochs is not None:
            return self.hparams.max_epochs * self.sampling.steps_per_epoch
        raise HparamsError("give max_iters (steps) or max_epochs: how long to train")
