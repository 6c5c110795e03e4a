"""Makes EasyEdit's own classes of MEND hyperparameters read files that name this method.

A script that calls `MENDHyperParams.from_hparams` then needs one changed line in its yaml file.
Does not know what a field means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.hparams import METHOD, MendHparams, names_method


def read_our_files(
    easyedits: Any, ours: type[MendHparams], options: Callable[[], Mapping[str, Any]]
) -> None:
    """Make `easyedits.from_hparams` return an object of `ours` for a file that names this method.

    The values of `options()` (those of `replace_mend`) override the file's. Every other file, and
    every class derived from `easyedits`, gets EasyEdit's own reading and its own errors.
    """
    original = vars(easyedits)["from_hparams"]

    @functools.wraps(original.__func__)
    def from_hparams(cls: Any, hparams_name_or_path: str | Path) -> Any:
        if cls is easyedits and _is_ours(hparams_name_or_path):
            return ours.from_hparams(hparams_name_or_path, **options())
        return original.__get__(None, cls)(hparams_name_or_path)

    easyedits.from_hparams = classmethod(from_hparams)


def _is_ours(name_or_path: str | Path) -> bool:
    try:
        return names_method(name_or_path, METHOD)
    except HparamsError:
        return False  # EasyEdit raises its own error
