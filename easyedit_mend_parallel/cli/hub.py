"""Says whether a model's or a tokenizer's name can be loaded, before anything tries for minutes.

Knows folders, the hub's cache and whether the hub can be reached; loads nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.errors import HparamsError

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
"""A folder with a tokenizer has one of these."""
SECONDS = 3.0
"""How long the hub may take to answer at all."""


def refuse_missing_tokenizer(name: str) -> None:
    """Raise HparamsError if `name` is no folder with a tokenizer, and not in the hub's cache."""
    _refuse_missing_folder("tokenizer_name", name)
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise HparamsError(f"tokenizer_name is {name!r}: that folder has no tokenizer")
    elif not _is_cached(name, TOKENIZER_FILES):
        raise HparamsError(
            f"tokenizer_name is {name!r}: no such folder, and no such tokenizer in the hub's cache "
            "on this machine. Correct the name, or download it first"
        )


def options_for(field: str, name: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """What `from_pretrained` needs besides `name`, the value of `field`: to look only into the
    hub's cache if the hub cannot be reached, since transformers tries again for a minute.

    Raises HparamsError for a path that does not exist, and for a name that is in neither place
    (`known` files tell).
    """
    if not isinstance(name, str) or Path(name).exists():
        return {}
    _refuse_missing_folder(field, name)
    if hub_answers():
        return {}
    if not _is_cached(name, known):
        raise HparamsError(
            f"{field} is {name!r}: no such folder, not in the hub's cache on this machine, and the "
            "hub cannot be reached from here. Correct the name, or download it first"
        )
    return {"local_files_only": True}


@cache
def hub_answers() -> bool:
    """Whether the hub answers within `SECONDS`, with anything. Asked once for a process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # of whichever library is behind the session
        return False
    return True


def _refuse_missing_folder(field: str, name: str) -> None:
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if is_path and not Path(name).is_dir():
        raise HparamsError(f"{field} is {name!r}: there is no such folder")


def _is_cached(name: str, files: tuple[str, ...]) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
    except HFValidationError:
        return False
