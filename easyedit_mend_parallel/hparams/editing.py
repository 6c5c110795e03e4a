"""Reads and checks hyperparameters for editing, also EasyEdit's own MEND yaml files, unchanged.

Knows nothing of models or of how an edit is made.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from easyedit_mend_parallel.errors import HparamsError, suggestion
from easyedit_mend_parallel.forward.tokenizing import AUTO, EASYEDIT
from easyedit_mend_parallel.hparams.fields import MendFields
from easyedit_mend_parallel.hparams.recorded import with_recorded
from easyedit_mend_parallel.hparams.values import (
    HOST_METHOD,
    METHOD,
    METHOD_FIELDS,
    batch_options,
    converted_to,
    network_options,
    problems_with,
    read_values,
    size_in_bytes,
)
from easyedit_mend_parallel.method.hypernetwork import HypernetworkConfig
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_text import lines_of

__all__ = ["HOST_METHOD", "METHOD", "MENDParallelHyperParams", "MendHparams"]

Hparams = TypeVar("Hparams", bound="MendHparams")


@dataclass(kw_only=True)
class MendHparams(MendFields):
    """The hyperparameters that editing and training share.

    The constructor raises HparamsError for invalid values.
    """

    def __post_init__(self) -> None:
        problems = problems_with(vars(self))
        if problems:
            raise HparamsError("; ".join(problems))
        if self.target_space is None:
            of_host = HOST_METHOD in (self.alg, self.alg_name)
            self.target_space = EASYEDIT if of_host else AUTO
        for name in METHOD_FIELDS:
            setattr(self, name, METHOD)

    @property
    def edits_untrained(self) -> bool:
        """Whether edits use no trained hypernetwork."""
        return self.untrained

    @property
    def overlay_bytes(self) -> int | None:
        """`overlay_limit` in bytes, None for no limit. Raises HparamsError if it is not a size."""
        return (
            None
            if self.overlay_limit is None
            else size_in_bytes("overlay_limit", self.overlay_limit)
        )

    @property
    def scope_bytes(self) -> int:
        """`scope_memory` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("scope_memory", self.scope_memory)

    @property
    def batch_bytes(self) -> int:
        """`batch_limit` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("batch_limit", self.batch_limit)

    @property
    def sequence_bytes(self) -> int:
        """`sequence_memory` in bytes. Raises HparamsError if it is not a size."""
        return size_in_bytes("sequence_memory", self.sequence_memory)

    @property
    def preserved_text(self) -> str | None:
        """The file of preserved text that `aggregate_options` name; None if they name none."""
        named = (self.aggregate_options or {}).get("preserved_text")
        return None if named is None else os.fspath(named)

    def aggregation(self, kept: Mapping[str, Any]) -> Aggregate:
        """How the updates of several requests become one.

        Values set here override those in the archive (`kept`), which override the defaults. For
        least squares the result has the lines of preserved text. Raises HparamsError for an
        invalid option.
        """
        values = {**kept, **batch_options(vars(self))}
        options = Aggregate.from_values(values, "the archive's options for batches")
        if options.how != "least_squares":
            return replace(options, preserved_text=None)
        if options.preserved_text is None or self.preserved_text is not None:
            return replace(options, preserved_text=lines_of(self.preserved_text))
        return options

    def network_config(self, network: HypernetworkConfig | None = None) -> HypernetworkConfig:
        """The options of the hypernetwork that are set here, and otherwise those of `network`, or
        the defaults. Raises HparamsError for an invalid combination.
        """
        return network_options(vars(self), network)

    def targets_and_network(self) -> tuple[list[str], HypernetworkConfig]:
        """The names of the targets, and the options of the hypernetwork.

        Values that are not set here are read from the archive. Raises HparamsError if both have a
        value and they differ, or if neither has one; ArchiveError if the archive cannot be read.
        """
        values, problems = with_recorded(vars(self), untrained=self.edits_untrained)
        if problems:
            raise HparamsError("; ".join(problems))
        return list(values["inner_params"]), network_options(values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_hparams(
        cls: type[Hparams], hparams_name_or_path: str | Path, **instead: Any
    ) -> Hparams:
        """Read a yaml or json file. The ending `.yaml` may be omitted, as in EasyEdit.

        The values of `instead` override those of the file.

        Raises HparamsError if the file is missing or not a mapping, or if keys are missing,
        unknown or of the wrong type. The error lists all such keys.
        """
        values, path = read_values(hparams_name_or_path)
        return cls.from_values({**values, **instead}, str(path))

    @classmethod
    def taken_from(cls: type[Hparams], hparams: Any, options: Mapping[str, Any]) -> Hparams:
        """This package's hyperparameters unchanged, or EasyEdit's with `options` added."""
        if isinstance(hparams, cls):
            return hparams
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in vars(hparams).items() if name in known}
        return cls.from_values({**values, **options}, "EasyEdit's hyperparameters")

    @classmethod
    def from_values(
        cls: type[Hparams], values: dict[str, Any], source: str = "the hyperparameters"
    ) -> Hparams:
        """Hyperparameters from names and values. An HparamsError names `source`."""
        converted, problems = cls.looked_through(values)
        if problems:
            raise HparamsError(f"{source}: " + "; ".join(problems))
        return cls(**converted)

    @classmethod
    def looked_through(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The valid `values`, converted to their fields' types, and the problems of the others.

        Finds unknown and missing keys and wrong types only; `every_problem` finds the rest.
        """
        fields = {option.name: option for option in dataclasses.fields(cls)}
        problems = [
            f"unknown key {name!r}" + suggestion(name, fields)
            for name in values
            if name not in fields
        ]
        problems += [
            f"missing key {name!r}"
            for name, option in fields.items()
            if name not in values and option.default is dataclasses.MISSING
        ]
        converted = {}
        for name, value in values.items():
            if name in fields:
                try:
                    converted[name] = converted_to(str(fields[name].type), value)
                except ValueError:
                    kind = str(fields[name].type).removesuffix(" | None")
                    problems.append(f"{name} is {value!r}, not a {kind}")
        return converted, problems

    @classmethod
    def every_problem(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """As `looked_through`, and also the problems of values that have the right type.

        The returned values include the defaults of absent fields.
        """
        converted, problems = cls.looked_through(values)
        defaults = {
            option.name: option.default
            for option in dataclasses.fields(cls)
            if option.default is not dataclasses.MISSING
        }
        return {**defaults, **converted}, problems + problems_with(converted)


@dataclass(kw_only=True)
class MENDParallelHyperParams(MendHparams):
    """Hyperparameters for editing: what `BaseEditor.from_hparams` and `MendParallel` take."""
