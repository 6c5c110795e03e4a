"""Checks values that were read from a file against types, at every depth.

Knows neither files nor formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type
from typing_extensions import is_typeddict

T = TypeVar("T")


def of_form(value: Any, form: type[T], what: str, *, more: bool = False) -> T:
    """`value`, if it and all that it holds are of the type `form`: a TypedDict, `list[int]`, ...

    Keys that a TypedDict does not name are refused; with `more`, those of `value` itself are left
    alone. Raises ValueError, which says `what` it is and which part is of another type.
    """
    known = value
    if more and is_typeddict(form) and isinstance(value, dict):
        known = {key: one for key, one in value.items() if key in form.__annotations__}
    try:
        check_type(known, form, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        said = str(error).replace("dict has unexpected", "it has unexpected")
        raise ValueError(f"{what}: {said}") from error
    return value  # type: ignore[no-any-return]


def instance_of(cls: type[T], values: Any, what: str) -> T:
    """The dataclass `cls` with the fields that `values` maps to values of their types.

    Raises ValueError, which says `what` it is, for a field that is unknown, missing or of another
    type.
    """
    types, needed = _fields(cast(Hashable, cls))
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is no mapping of names to values")
    unknown, missing = values.keys() - types.keys(), needed - values.keys()
    if unknown or missing:
        says = "is unknown" if unknown else "is missing"
        raise ValueError(f"{what}: {min(map(str, unknown or missing))!r} {says}")
    given = {name: of_form(one, types[name], f"{what}, {name}") for name, one in values.items()}
    return cls(**given)


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """{field's name: its type}, and the names of those without a default."""
    hints, fields = get_type_hints(cls), dataclasses.fields(cls)
    needed = (
        one.name
        for one in fields
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    )
    return {one.name: hints[one.name] for one in fields}, frozenset(needed)
