"""Completes hyperparameters with the values that their archive records.

Knows the header of an archive, and no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.hparams.values import NETWORK_FIELDS
from easyedit_mend_parallel.method.archive import load_archive
from easyedit_mend_parallel.weights.target import parameter_of

FREE = ("edit_lr", "lr_scale")
"""Options of the network that may differ from the archive's: learned rates come from its tensors,
and `lr_scale` multiplies every update."""
FIXED = tuple(name for name in NETWORK_FIELDS if name not in FREE)
"""Options that must equal those with which the network was trained."""
RECORDED = ("inner_params", *FIXED, "edit_lr")
"""The fields that an archive records, so that hyperparameters need not repeat them."""


def with_recorded(
    values: Mapping[str, Any], *, untrained: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """`values` {field: value}, completed with the archive's values, and the problems found.

    A field that is absent or None is taken from the archive. If both have a value and they differ,
    or if a required field has none, that is a problem. With `untrained` the options may differ,
    since only the archive's statistics are used. If the targets are those of the archive in another
    order, the archive's order is used, which is that of its learned rates.

    Raises ArchiveError if the archive cannot be read.
    """
    path = values.get("archive")
    kept = {} if path is None else recorded_in(path)
    filled = {**values, **{name: kept[name] for name in kept if values.get(name) is None}}
    problems = []
    named, trained = values.get("inner_params"), kept.get("inner_params")
    if named is not None and trained is not None:
        if sorted(_each_expert(named, trained)) == sorted(trained):
            filled["inner_params"] = trained
        else:
            problems.append(_other_targets(path, named, trained))
    if not untrained:
        problems += [
            f"{name} is {values[name]!r} in the hyperparameters and {kept[name]!r} in the archive "
            f"{path}: leave it out to use the archive's value, or name another archive"
            for name in FIXED
            if None not in (values.get(name), kept.get(name)) and values[name] != kept[name]
        ]
    missing = [name for name in _needed(path, untrained) if filled.get(name) is None]
    if missing:
        problems.append(_missing(path, missing))
    return filled, problems


def _each_expert(named: Sequence[Any], trained: Sequence[str]) -> list[str]:
    """`named` with the trained names of the experts in the place of a stack's name."""
    of_stack: dict[str, list[str]] = {}
    for name in trained:
        stack, expert = parameter_of(name)
        if expert is not None:
            of_stack.setdefault(stack, []).append(name)
    return [one for name in map(str, named) for one in of_stack.get(name, [name])]


def recorded_in(path: str | Path) -> dict[str, Any]:
    """{field: value} that the archive at `path` records; empty for EasyEdit's format.

    Raises ArchiveError for a safetensors file that is missing or not whole.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    header = load_archive(path, shapes_only=True).header
    config, targets = header.get("config"), header.get("targets")
    found = {}
    if isinstance(config, Mapping):
        found = {name: config[name] for name in RECORDED if config.get(name) is not None}
    if isinstance(targets, list) and all(isinstance(one, Mapping) for one in targets):
        found["inner_params"] = [str(one.get("name")) for one in targets]
    return found


def _needed(path: str | Path | None, untrained: bool) -> Sequence[str]:
    """The fields without which a network cannot be built; the others have a default."""
    if untrained:
        return ("inner_params",)
    if path is None:
        return ("inner_params", "rank", "edit_lr")
    return ("inner_params", *FIXED)


def _missing(path: str | Path | None, names: Sequence[str]) -> str:
    says = f"missing {'key' if len(names) == 1 else 'keys'} {', '.join(map(repr, names))}"
    if path is None:
        return f"{says}: archive is null, so nothing else says what the network is"
    return (
        f"{says}: the archive {path} does not record what its network is (a file in EasyEdit's "
        "format cannot). Add the values that it was trained with"
    )


def _other_targets(path: Any, named: Sequence[str], trained: Sequence[str]) -> str:
    ours = [str(name) for name in named if name not in trained]
    theirs = [name for name in trained if name not in named]
    return (
        f"inner_params in the hyperparameters and in the archive {path} differ: the former name "
        f"{', '.join(ours) or 'nothing else'}, and the latter was trained for "
        f"{', '.join(theirs) or 'nothing else'}. Leave inner_params out to edit what the archive "
        "was trained for, or name another archive"
    )
