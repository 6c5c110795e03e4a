"""`mend-parallel calibrate`: computes statistics for editing without a trained hypernetwork."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams


def command(
    config: Annotated[Path, typer.Argument(help="The hyperparameter file (yaml) to edit with.")],
    data: Annotated[
        Path,
        typer.Option(help="Facts, in a format of docs/training-data.md."),
    ],
    out: Annotated[Path, typer.Option(help="The archive to write (.safetensors).")] = Path(
        "calibrated.safetensors"
    ),
    limit: Annotated[
        int, typer.Option(min=1, help="Use only this many requests, the first ones.")
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests in one forward pass.")] = 8,
) -> None:
    """Compute the statistics with which an untrained edit normalises its rows.

    Nothing is trained. To edit with the result, put the printed lines into the hyperparameters.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from easyedit_mend_parallel.cli.loading import load_model
    from easyedit_mend_parallel.evaluation.data import read_examples
    from easyedit_mend_parallel.forward.batch import make_batch
    from easyedit_mend_parallel.forward.requests import as_requests
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams
    from easyedit_mend_parallel.method.archive import save_archive
    from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
    from easyedit_mend_parallel.training.calibration import calibrate
    from easyedit_mend_parallel.weights.placement import network_home
    from easyedit_mend_parallel.weights.target import find_targets

    hparams = MENDParallelHyperParams.from_hparams(config)
    names, options = _as_untrained(hparams).targets_and_network()
    _refuse_useless(options.norm, out)
    requests = [example.request for example in read_examples(data)[0]]
    used = as_requests(requests[:limit], hparams.target_space)
    model, tokenizer = load_model(hparams)
    targets = find_targets(model, names)
    torch.manual_seed(hparams.seed)
    network = Hypernetwork(targets, options)
    network.to(network_home(model, targets, hparams.network_device))
    errors = Console(stderr=True)
    starts = range(0, len(used), batch_size)
    calibrate(
        model,
        targets,
        network,
        (
            make_batch(
                model,
                tokenizer,
                used[start : start + batch_size],
                special_tokens_in_labels=hparams.special_tokens_in_labels,
            )
            for start in track(starts, "token rows", console=errors)
        ),
    )
    save_archive(
        out,
        network,
        special_tokens_in_labels=hparams.special_tokens_in_labels,
        untrained=True,
        requests=len(used),
    )
    print(
        f"statistics of {len(used)} of the {len(requests)} requests in {data}. To edit with them:"
    )
    print(f"untrained: true\narchive: {out}")


def _as_untrained(hparams: MENDParallelHyperParams) -> MENDParallelHyperParams:
    """`hparams` for computing statistics only. The archive is left out if the hyperparameters name
    targets, since it may be the file that is to be written."""
    archive = hparams.archive if hparams.inner_params is None else None
    return replace(hparams, untrained=True, archive=archive)


def _refuse_useless(norm: bool, out: Path) -> None:
    from easyedit_mend_parallel.errors import ArchiveError, HparamsError

    if not norm:
        raise HparamsError("norm is false, so no statistics are used: edit with untrained: true")
    if out.suffix != ".safetensors":
        raise ArchiveError(
            f"{out} must end in .safetensors: only that format says that it is untrained"
        )
