"""`mend-parallel calibrate`: statistics for editing without a trained hypernetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    config: Annotated[Path, typer.Argument(help="The hyperparameter file (yaml) to edit with.")],
    data: Annotated[
        Path,
        typer.Option(help='JSON lines, each {"prompt": ..., "target_new": ...}; more is ignored.'),
    ],
    out: Annotated[Path, typer.Option(help="The archive to write (.safetensors).")] = Path(
        "calibrated.safetensors"
    ),
    limit: Annotated[
        int, typer.Option(min=1, help="Use no more requests than this, from the beginning.")
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests in one forward pass.")] = 8,
) -> None:
    """Gather the statistics that an untrained edit normalises with, in a forward and a backward.

    Nothing is trained. Write what it prints into the hyperparameters to edit with the result.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from easyedit_mend_parallel.archive import save_archive
    from easyedit_mend_parallel.batch import make_batch
    from easyedit_mend_parallel.calibration import calibrate
    from easyedit_mend_parallel.cli.model import load_model
    from easyedit_mend_parallel.hparams import MENDParallelHyperParams
    from easyedit_mend_parallel.hypernetwork import Hypernetwork
    from easyedit_mend_parallel.placement import network_home
    from easyedit_mend_parallel.target import find_targets

    hparams = MENDParallelHyperParams.from_hparams(config)
    _refuse_useless(hparams.norm, out)
    requests = _read(data)
    used = requests[:limit]
    model, tokenizer = load_model(hparams)
    targets = find_targets(model, hparams.inner_params)
    torch.manual_seed(hparams.seed)
    network = Hypernetwork(targets, hparams.network_config())
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


def _refuse_useless(norm: bool, out: Path) -> None:
    from easyedit_mend_parallel.errors import ArchiveError, HparamsError

    if not norm:
        raise HparamsError("norm is false, so no statistics are used: edit with untrained: true")
    if out.suffix != ".safetensors":
        raise ArchiveError(f"{out} has to end in .safetensors, which says that it is untrained")


def _read(path: Path) -> list[Any]:
    """The requests in a file of JSON lines; raises RequestError that names file and line."""
    import json

    from easyedit_mend_parallel.errors import RequestError
    from easyedit_mend_parallel.requests import as_requests

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read requests from {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found += as_requests([json.loads(line)])
        except (ValueError, RequestError) as error:
            said = str(error).replace("request 0", "it", 1)
            raise RequestError(f"{path}, line {number}: {said}") from error
    if not found:
        raise RequestError(f"{path} holds no request: it needs one JSON object on each line")
    return found
