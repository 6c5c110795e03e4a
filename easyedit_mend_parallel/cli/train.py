"""`mend-parallel train`: trains a hypernetwork, in one process or several."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="Training hyperparameters (yaml, as EasyEdit's).")],
    train: Annotated[Path, typer.Option("--train", help="Facts to train on.")],
    evaluation: Annotated[Path | None, typer.Option("--eval", help="Facts to evaluate on.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where results go (default: results_dir).")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or name, instead of CONFIG's model_name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time limit.")] = None,
    mixed_precision: Annotated[
        str | None, typer.Option("--mixed-precision", help="no, fp16 or bf16, as in accelerate.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for tensorboard.")
    ] = False,
    scope_only: Annotated[
        bool,
        typer.Option("--scope-only", help="Add a scope to CONFIG's archive, for apply: scoped."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a hypernetwork for the model and the targets that CONFIG names.

    Data may be zsRE or CounterFact json, or JSON lines. To train in several processes, start this
    command with `accelerate launch` or `torchrun`. OUT then has archive.safetensors (the best),
    last.safetensors (to resume from), metrics.jsonl and curves.png.

    With --scope-only no hypernetwork is trained: OUT gets the archive that CONFIG names with a
    scope in it, which `apply: scoped` uses.
    """
    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.evaluation.data import read_examples
    from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
    from easyedit_mend_parallel.training.curves import draw_curves
    from easyedit_mend_parallel.training.length_filter import Data
    from easyedit_mend_parallel.training.processes import accelerator_of
    from easyedit_mend_parallel.training.scope_only import train_scope_only
    from easyedit_mend_parallel.training.trainer import Trainer

    hparams = MENDParallelTrainingHparams.from_hparams(config)
    if model is not None:
        hparams.model_name = hparams.tokenizer_name = model
    folder = out or Path(hparams.results_dir)
    data = Data(*read_examples(train), *(read_examples(evaluation) if evaluation else ()))
    accelerator = accelerator_of(
        mixed_precision=mixed_precision,
        log_with="tensorboard" if tensorboard else None,
        project_dir=folder,
    )
    loaded, tokenizer = load_model(hparams, accelerator.device)
    if scope_only:
        found = train_scope_only(loaded, tokenizer, hparams, data, folder, quiet=as_json)
        said = {"archive": str(found.archive), "thresholds": asdict(found.thresholds)}
        print(json.dumps(said, indent=2) if as_json else f"{found.archive}: a scope was added")
        return
    trainer = Trainer(
        loaded,
        tokenizer,
        hparams,
        data,
        folder,
        accelerator=accelerator,
        minutes=minutes,
        resume=resume,
        quiet=as_json,
    )
    archive = trainer.run()
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    curves = draw_curves(folder)
    if as_json:
        result = {
            "archive": str(archive),
            "curves": str(curves),
            "steps": trainer.progress.step,
            "best_step": trainer.progress.best_step,
            "evaluation": [scores.to_dict() for scores in trainer.evaluations],
        }
        print(json.dumps(result, indent=2))
    else:
        print(f"{archive} after {trainer.progress.step} steps; curves in {curves}")
