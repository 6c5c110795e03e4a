"""Adds options for batches or a scope to a trained archive.

The network's tensors keep their bits. Knows nothing of training.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.errors import ArchiveError
from easyedit_mend_parallel.files import read_tensors, write_tensors
from easyedit_mend_parallel.method.archive import WITH_SCOPE, load_archive
from easyedit_mend_parallel.method.kept_scope import HEADER as SCOPE
from easyedit_mend_parallel.method.kept_scope import scope_header, scope_tensors
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.weights.scope import Scope


def keep_aggregate(path: str | Path, options: Aggregate) -> None:
    """Write into the archive at `path` how batches are combined.

    Editors use these options unless their hyperparameters set others. The file is written again,
    whole or not at all; its tensors keep their bits. Raises ArchiveError for a file that is no
    safetensors archive: EasyEdit's format cannot store options.
    """
    path = Path(path)
    load_archive(path)
    if path.suffix != ".safetensors":
        raise ArchiveError(
            f"{path} is an archive in EasyEdit's format, which keeps no options: write it anew "
            "with save_archive under a name that ends in .safetensors"
        )
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, {**header, "aggregate": asdict(options)})


def keep_scope(path: str | Path, scope: Scope, out: str | Path, **header: Any) -> Path:
    """Write the archive at `path`, of either format, with `scope` to `out`, whole or not at all.

    `header` has what an archive in EasyEdit's format lacks (targets, config). The tensors of
    the network keep their bits. Raises ArchiveError for a file that is no archive, or an `out` that
    does not end in .safetensors.
    """
    path, out = Path(path), Path(out)
    archive = load_archive(path)
    if out.suffix != ".safetensors":
        raise ArchiveError(f"{out} cannot hold a scope: name a file that ends in .safetensors")
    tensors = {**archive.state, **scope_tensors(scope)}
    about = {**header, **archive.header, "format_version": WITH_SCOPE, SCOPE: scope_header(scope)}
    write_tensors(out, tensors, about)
    return out
