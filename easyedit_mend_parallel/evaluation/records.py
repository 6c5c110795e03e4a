"""Reads the JSON objects of a file. Each knows its line, so that every error can name it.

Knows UTF-8, JSON and the types of fields, and not the meaning of any field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from easyedit_mend_parallel.errors import DataError, suggestion
from easyedit_mend_parallel.files import parsed_json

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def is_list(file: BinaryIO, path: Path) -> bool:
    """Whether the file begins as a JSON list. Afterwards it is at its start again.

    Raises:
        DataError: the file is empty.
    """
    start = file.read(len(_BYTE_ORDER_MARK))
    character = start.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]
    while not character:
        more = file.read(4096)
        if not more:
            raise DataError(f"{path} is empty; the formats are in docs/training-data.md")
        character = more.lstrip()[:1]
    file.seek(0)
    return character == b"["


def from_lines(file: BinaryIO, path: Path) -> Iterator[Record]:
    """The object of each line, read one at a time. Blank lines are skipped.

    Raises:
        DataError: a line is not UTF-8, not JSON, or not an object.
    """
    for where, line in _lines(file, path):
        try:
            fields = parsed_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON ({_reason(error)}); "
                "each line must be one whole object: {...}"
            ) from None
        yield Record(fields, where)


def from_list(file: BinaryIO, path: Path) -> list[Record]:
    """The objects of a JSON list, which is read at once.

    Raises:
        DataError: the file is not UTF-8, not JSON, not a list, or an entry is not an object.
    """
    entries = _json_list(file.read().removeprefix(_BYTE_ORDER_MARK), path)
    return [Record(fields, f"{path}, record {number}") for number, fields in enumerate(entries)]


class Record:
    """One JSON object and its position in the file, which every error names."""

    def __init__(self, fields: object, where: str) -> None:
        if not isinstance(fields, dict):
            raise DataError(f"{where} is {_kind(fields)}; each record must be an object: {{...}}")
        self.fields: dict[str, Any] = fields
        self.where = where

    def error(self, name: str, complaint: str) -> DataError:
        return DataError(f"{self.where}: {name!r} {complaint}")

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def value(self, name: str) -> Any:
        if name not in self.fields:
            close = suggestion(name, self.fields)
            raise self.error(name, f"is missing{close or '; add it, or leave the record out'}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A string that is not blank."""
        text = self._as_text(name, self.value(name))
        if not text.strip():
            raise self.error(name, "is empty; fill it, or leave the record out")
        return text

    def optional(self, name: str) -> str | None:
        """A string, or None if the field is absent or null."""
        return None if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """The strings of a list; none if the field is absent."""
        found = self.fields.get(name, [])
        if not isinstance(found, list):
            raise self.error(name, f'is {_kind(found)}; write a list of strings: ["...", "..."]')
        entries = tuple(self._as_text(f"{name}[{i}]", entry) for i, entry in enumerate(found))
        for i, entry in enumerate(entries):
            if not entry.strip():
                raise self.error(f"{name}[{i}]", "is empty; fill it, or leave it out")
        return entries

    def inner(self, name: str) -> Record:
        """An object inside this one."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise self.error(name, f"is {_kind(value)}, and must be an object: {{...}}")
        return Record(value, f"{self.where}, in {name!r}")

    def inners(self, name: str) -> list[Record]:
        """The objects of a list; none if the field is absent."""
        found = self.fields.get(name, [])
        if not isinstance(found, list):
            raise self.error(name, f"is {_kind(found)}; write a list of objects: [{{...}}]")
        return [Record(one, f"{self.where}, in '{name}[{i}]'") for i, one in enumerate(found)]

    def _as_text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(name, f"is {_kind(value)}, and must be a string")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # "\ud83d" alone, which no tokenizer accepts
                raise self.error(name, "holds half of a surrogate pair; write it whole") from None
        return value


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    """The position and the text of each line. Blank lines are skipped."""
    for number, raw in enumerate(file, start=1):
        where = f"{path}, line {number}"
        if number == 1:
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} is not UTF-8 (byte {error.start + 1} of it); save the file as UTF-8"
            ) from None
        if line:
            yield where, line


def _json_list(raw: bytes, path: Path) -> list[Any]:
    try:
        records = parsed_json(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}{where} is not JSON ({_reason(error)}); "
            "the file must be one list of records: [{...}, {...}]"
        ) from None
    if not isinstance(records, list):
        raise DataError(
            f"{path} is {_kind(records)}, and must be a list of records: [{{...}}, {{...}}]; "
            "one object per line is format 'jsonl'"
        )
    return records


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: object) -> str:
    return _JSON_TYPES.get(type(value), type(value).__name__)
