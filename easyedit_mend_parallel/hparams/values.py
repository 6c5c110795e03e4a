"""Reads the values of hyperparameters from a file, converts them to their types, and checks them.

Knows which values are invalid, for all classes of hyperparameters.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils.modeling import convert_file_size_to_int

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.files import parsed_json, refuse_irregular
from easyedit_mend_parallel.forward.tokenizing import TARGET_SPACE
from easyedit_mend_parallel.method.hypernetwork import HypernetworkConfig
from easyedit_mend_parallel.method.least_squares import Aggregate

METHOD = "MEND_PARALLEL"
"""The name of this method in EasyEdit, `alg_name` and `alg` alike."""
HOST_METHOD = "MEND"
"""The name of EasyEdit's own method, whose files are read too."""
METHOD_FIELDS = ("alg_name", "alg")
"""The fields that name the method: EasyEdit's editors read one and its trainers the other."""

APPLY = ("weight", "output", "scoped")
"""How an update gets into the model: written, added to the layer's output, or added to it only for
texts about the edited fact."""
ON_WORSE = ("refuse", "warn", "ignore")
"""What to do with an update after which its own target is less likely than before."""

SEQUENCE = ("solve", "add")
"""How a further edit goes into a model that has edits."""

FACTORS = {
    "step_margin": "multiplies the smallest step of an untrained edit that yields the target",
    "max_step": "is the largest factor by which a failed edit is scaled",
}
"""The fields that scale an edit, and what each does."""
COUNTS = ("locality_examples", "locality_positions", "inner_steps", "solved_edits")
"""The fields that are counts of at least 1."""
SIZES = (
    "overlay_limit",
    "batch_limit",
    "sequence_memory",
    "scope_memory",
    "trunk_memory",
    "trunk_disk",
)
"""The fields that are sizes in bytes, or null."""

MOST_VALUES = 10_000
"""A file with more values than this is no file of hyperparameters."""

NETWORK_FIELDS = tuple(option.name for option in dataclasses.fields(HypernetworkConfig))
"""The options of the hypernetwork."""


def read_values(name_or_path: str | Path) -> tuple[dict[str, Any], Path]:
    """The names and values in a yaml or json file, and its path; `.yaml` may be omitted.

    Raises HparamsError for a file that is missing, cannot be parsed or names no method.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = path.with_name(path.name + ".yaml")
    try:
        refuse_irregular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HparamsError(f"cannot read hyperparameters from {path}: {error}") from error
    try:
        values = parsed_json(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise HparamsError(f"{path} cannot be parsed: {error}") from error
    if _is_larger(values, MOST_VALUES):
        raise HparamsError(
            f"{path} stands for more than {MOST_VALUES} values: its anchors repeat each other"
        )
    if not isinstance(values, dict):
        raise HparamsError(f"{path} does not hold a mapping of names to values")
    if not set(METHOD_FIELDS) & set(values):
        raise HparamsError(f"{path} names no method: add `alg_name: {METHOD}`")
    return values, path


class _Loader(yaml.SafeLoader):
    """Refuses a name that has two values, of which yaml would silently take the last.

    The same value twice is accepted: one of EasyEdit's files has it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Node] = {}
        for key, value in node.value:
            name = getattr(key, "value", None)
            if not isinstance(name, str):
                continue
            if name in seen and yaml.serialize(seen[name]) != yaml.serialize(value):
                says = f"{name} has two values; leave one of them out"
                raise yaml.constructor.ConstructorError(None, None, says, key.start_mark)
            seen[name] = value
        return super().construct_mapping(node, deep)


def names_method(name_or_path: str | Path, method: str) -> bool:
    """Whether a file says `alg_name: method` or `alg: method`. Raises as `read_values`."""
    values, _ = read_values(name_or_path)
    return method in (values.get(name) for name in METHOD_FIELDS)


def _is_larger(values: Any, most: int) -> bool:
    """Whether a value that was parsed holds more than `most` values, each alias counted."""
    waiting, count = [values], 0
    while waiting and count <= most:
        count += 1
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one[:most]
    return count > most


def problems_with(values: Mapping[str, Any]) -> list[str]:
    """Every problem of `values`, which have the right types. Absent fields are not checked."""
    problems = [
        f"{name} is {values[name]!r}: these are hyperparameters of {METHOD}; files that say "
        f"{HOST_METHOD!r} are read too"
        for name in METHOD_FIELDS
        if values.get(name, METHOD) not in (METHOD, HOST_METHOD)
    ]
    targets = values.get("inner_params")
    if targets is not None and (isinstance(targets, str) or not targets):
        problems.append(
            f"inner_params is {targets!r}; it has to list the names of the weights to edit"
        )
    model_kwargs = values.get("model_kwargs")
    if model_kwargs is not None and not isinstance(model_kwargs, dict):
        problems.append(
            f"model_kwargs is {model_kwargs!r}; it has to map arguments of "
            "from_pretrained (device_map, max_memory, dtype, ...) to their values"
        )
    options = values.get("aggregate_options")
    if options is not None and not isinstance(options, dict):
        problems.append(
            f"aggregate_options is {options!r}; it has to map options (ridge, preserved_text, ...) "
            "to their values"
        )
    else:
        try:
            Aggregate.from_values(batch_options(values), "aggregate_options")
        except HparamsError as error:
            problems.append(str(error))
    apply = values.get("apply", APPLY[0])
    if apply not in APPLY:
        problems.append(
            f"apply is {apply!r}; it has to be 'weight' (the update is written into the "
            "weight), 'output' (it is added to the layer's output, and nothing is written) or "
            "'scoped' (the same, for the sequences that it is about)"
        )
    on_worse = values.get("on_worse")
    if on_worse is not None and on_worse not in ON_WORSE:
        problems.append(
            f"on_worse is {on_worse!r}; it has to be 'refuse' (an update that makes its own target "
            "less likely is an error), 'warn' (it is written, with a warning) or 'ignore' (nobody "
            "looks)"
        )
    if values.get("sequence", SEQUENCE[0]) not in SEQUENCE:
        problems.append(
            f"sequence is {values['sequence']!r}; it has to be 'solve' (a further edit is solved "
            "together with earlier ones) or 'add' (its update is added to theirs)"
        )
    max_lost = values.get("max_lost")
    if max_lost is not None and not 0 <= max_lost <= 1:
        problems.append(f"max_lost is {max_lost}; it has to be a share, from 0 to 1, or null")
    longest = values.get("max_relative_norm", 1.0)
    if not 0 < longest < math.inf:
        problems.append(
            f"max_relative_norm is {longest}; it has to be a positive number, the longest step of "
            "an untrained edit as a share of each weight's norm"
        )
    problems += [
        f"{name} is {values[name]}; it {what}, so it has to be 1 or more"
        for name, what in FACTORS.items()
        if not 1 <= values.get(name, 1.0) < math.inf
    ]
    try:
        network_options(values)
    except HparamsError as error:
        problems.append(str(error))
    problems += [
        f"{name} is {values[name]}; it has to be 1 or more"
        for name in COUNTS
        if values.get(name, 1) < 1
    ]
    if not 0 < values.get("chat_share", 1.0) <= 1:
        problems.append(
            f"chat_share is {values['chat_share']}; it has to be a fraction of the facts, above 0 "
            "and at most 1 (for none, leave `chat` false)"
        )
    if values.get("inner_steps", 1) > 1 and values.get("aggregate") == "mean_loss":
        problems.append(
            "inner_steps is more than 1, and `aggregate: mean_loss` makes one step of one mean "
            "loss: use `sum` or `least_squares`"
        )
    if values.get("target_space") not in (None, *TARGET_SPACE):
        problems.append(
            f"target_space is {values['target_space']!r}; it has to be one of "
            f"{', '.join(TARGET_SPACE)}"
        )
    if values.get("continuation_positions", 0) < 0:
        problems.append(
            f"continuation_positions is {values['continuation_positions']}; it has to be 0 (none) "
            "or the number of positions after an answer that are compared"
        )
    for name in SIZES:
        try:
            size_in_bytes(name, values.get(name, 0) or 0)
        except HparamsError as error:
            problems.append(str(error))
    return problems


def network_options(
    values: Mapping[str, Any], other: HypernetworkConfig | None = None
) -> HypernetworkConfig:
    """The network's options in `values`; for absent ones those of `other`, or the defaults.

    Raises HparamsError for options that contradict each other.
    """
    said = {name: values[name] for name in NETWORK_FIELDS if values.get(name) is not None}
    return dataclasses.replace(other or HypernetworkConfig(rank=1), **said)


def batch_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options in `values` for combining a batch, without the file of preserved text."""
    options = dict(values.get("aggregate_options") or {})
    options.pop("preserved_text", None)
    if values.get("aggregate") is not None:
        options["how"] = values["aggregate"]
    return options


def size_in_bytes(field: str, size: int | str) -> int:
    """The size of `field` as accelerate reads those of `max_memory`: bytes, or `2GiB`, `500MB`.

    A lower-case b is refused, since accelerate reads it as bits. Raises HparamsError if `size` is
    not a size.
    """
    text = str(size).strip()
    try:
        if isinstance(size, bool) or text.endswith("b"):
            raise ValueError
        return int(convert_file_size_to_int(int(text) if text.isdecimal() else text))
    except (ValueError, OverflowError):
        raise HparamsError(
            f"{field} is {size!r}; it has to be a number of bytes, or one with a unit (KB, MB, GB, "
            "KiB, MiB, GiB), such as '2GiB'"
        ) from None


def converted_to(kind: str, value: Any) -> Any:
    """`value` as the field's type. yaml reads `1e-4` as a string, and EasyEdit's files have such
    numbers.

    Raises ValueError if it has another type.
    """
    if value is None and "None" in kind:
        return value
    if isinstance(value, os.PathLike) and kind.startswith("str"):
        return os.fspath(value)
    if kind.startswith("float") and isinstance(value, (str, int)) and not isinstance(value, bool):
        return float(value)
    plain = {"bool": bool, "int": int, "str": str, "float": float}.get(kind.split(" | ")[0])
    if plain is None or "|" in kind.replace(" | None", ""):
        return value
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ValueError
    return value
