"""Facts to train and evaluate on, read from three formats into one: `docs/training-data.md`.

Knows files and what their fields mean; knows no tokenizer and no model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from easyedit_mend_parallel.errors import DataError, suggestion
from easyedit_mend_parallel.requests import Request

log = logging.getLogger(__name__)

FORMATS = ("auto", "jsonl", "zsre", "counterfact")
"""What `read_examples` reads; "auto" looks at the start of the file."""
DEFAULT_SPLIT = "all"
"""The label of facts that name none."""

_EDIT_FIELDS = (
    "prompt",
    "target_new",
    "ground_truth",
    "subject",
    "relation",
    "rephrases",
    "neighbours",
    "unrelated",
    "split",
)
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


@dataclass(frozen=True)
class Held:
    """A text that an edit must not change.

    With a `target`, which follows `prompt` after a space, only the positions that predict the
    target are compared. Without one, a neighbour is compared where it ends, an unrelated text at
    every position.
    """

    prompt: str
    target: str = ""


@dataclass(frozen=True)
class Example:
    """One edit, with the texts that judge it.

    Attributes:
        request: the edit; its `other` holds `subject` and `ground_truth` where the file does.
        rephrases: further prompts after which the target is to follow.
        neighbours: prompts about other subjects, whose answers must not change.
        unrelated: texts about anything else, which must not change.
        subject: whom or what the edit is about.
        relation: what is asked of the subject; facts of one relation can be neighbours.
        split: the label under which evaluation reports the edit.
    """

    request: Request
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[Held, ...] = ()
    unrelated: tuple[Held, ...] = ()
    subject: str | None = None
    relation: str | None = None
    split: str = DEFAULT_SPLIT


def read_examples(
    path: str | PathLike[str], format: str = "auto"
) -> tuple[list[Example], list[str]]:
    """The edits of a file, in its order, and the unrelated texts that stand beside them.

    Args:
        path: a file in UTF-8. JSON lines are read one at a time, a JSON list at once.
        format: one of `FORMATS`. "auto" takes a file that begins with `[` for a JSON list, which is
            zsRE when its first record has `src` and CounterFact otherwise; any other for JSON
            lines.

    Raises:
        DataError: the file cannot be read, is not in the format, or holds no edit. The message
            names the file, the line (from 1) or the record of a JSON list (from 0), the field, and
            what to do.
    """
    if format not in FORMATS:
        raise DataError(
            f"there is no format {format!r}{suggestion(format, FORMATS)}; "
            f"use one of {', '.join(FORMATS)}"
        )
    path = Path(path)
    try:
        with path.open("rb") as file:
            listed = format in ("zsre", "counterfact")
            if format == "auto":
                listed = _first_character(file, path) == b"["
            examples, texts = _read_list(file, path, format) if listed else _read_lines(file, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not examples:
        found = f"{len(texts)} unrelated texts and no edit" if texts else "no edit"
        raise DataError(
            f"{path} holds {found}; an edit is a record with a prompt and its new target "
            "(the formats are in docs/training-data.md)"
        )
    return examples, texts


class _Record:
    """One JSON object, and where it stands, so that every complaint says so."""

    def __init__(self, fields: object, where: str) -> None:
        if not isinstance(fields, dict):
            raise DataError(f"{where} is {_kind(fields)}; each record has to be an object: {{...}}")
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
        """A string that says something."""
        text = self._as_text(name, self.value(name))
        if not text.strip():
            raise self.error(name, "is empty; fill it, or leave the record out")
        return text

    def optional(self, name: str) -> str | None:
        """A string, or None where the field is absent or null."""
        return None if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """The strings of a list, none where the field is absent."""
        found = self.fields.get(name, [])
        if not isinstance(found, list):
            raise self.error(name, f'is {_kind(found)}; write a list of strings: ["...", "..."]')
        entries = tuple(self._as_text(f"{name}[{i}]", entry) for i, entry in enumerate(found))
        for i, entry in enumerate(entries):
            if not entry.strip():
                raise self.error(f"{name}[{i}]", "is empty; fill it, or leave it out")
        return entries

    def inner(self, name: str) -> _Record:
        """An object inside this one."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise self.error(name, f"is {_kind(value)}, and has to be an object: {{...}}")
        return _Record(value, f"{self.where}, in {name!r}")

    def _as_text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(name, f"is {_kind(value)}, and has to be a string")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # "\ud83d" alone, which no tokenizer takes
                raise self.error(name, "holds half of a surrogate pair; write it whole") from None
        return value


def _plain(record: _Record) -> Example | str:
    """A line of the plain format: an edit, or an unrelated text."""
    if "text" in record:
        for name in record.fields:
            if name != "text":
                raise record.error(
                    name, "stands beside 'text'; a line is an edit or an unrelated text, not both"
                )
        return record.text("text")
    for name in record.fields:
        if name not in _EDIT_FIELDS:
            close = suggestion(name, _EDIT_FIELDS)
            known = f", which has {', '.join(_EDIT_FIELDS)}"
            raise record.error(name, f"is no field of an edit{close or known}")
    return Example(
        request=_request(record, "prompt", "target_new", record.optional("ground_truth")),
        rephrases=record.texts("rephrases"),
        neighbours=tuple(Held(text) for text in record.texts("neighbours")),
        unrelated=tuple(Held(text) for text in record.texts("unrelated")),
        subject=record.optional("subject"),
        relation=record.optional("relation"),
        split=record.optional("split") or DEFAULT_SPLIT,
    )


def _request(record: _Record, prompt: str, target: str, truth: str | None) -> Request:
    other = {"subject": record.optional("subject"), "ground_truth": truth}
    said = {name: value for name, value in other.items() if value is not None}
    return Request(record.text(prompt), record.text(target), said)


def _zsre(record: _Record) -> Example | None:
    """A record as EasyEdit's ZsreDataset reads it; None where `alt`, the new target, is empty."""
    if record.value("alt") == "":
        return None
    answers = record.texts("answers")
    return Example(
        request=_request(record, "src", "alt", answers[0] if answers else None),
        rephrases=(record.text("rephrase"),),
        unrelated=(Held(record.text("loc"), record.text("loc_ans")),),
        subject=record.optional("subject"),
    )


def _counterfact(record: _Record) -> Example:
    """A record of EasyEdit's flat CounterFact, or of the original with `requested_rewrite`."""
    if "requested_rewrite" in record:
        return _original_counterfact(record)
    held = Held(record.text("locality_prompt"), record.text("locality_ground_truth"))
    return Example(
        request=_request(record, "prompt", "target_new", record.optional("ground_truth")),
        rephrases=(record.text("rephrase_prompt"),),
        neighbours=(held,),
        subject=record.optional("subject"),
    )


def _original_counterfact(record: _Record) -> Example:
    rewrite = record.inner("requested_rewrite")
    prompt, subject = rewrite.text("prompt"), rewrite.text("subject")
    if "{}" not in prompt:
        raise rewrite.error("prompt", f"has no {{}} where the subject stands: {prompt!r}")
    truth = rewrite.inner("target_true").text("str")
    return Example(
        request=Request(
            prompt.replace("{}", subject),
            rewrite.inner("target_new").text("str"),
            {"subject": subject, "ground_truth": truth},
        ),
        rephrases=record.texts("paraphrase_prompts"),
        neighbours=tuple(Held(text, truth) for text in record.texts("neighborhood_prompts")),
        subject=subject,
        relation=rewrite.optional("relation_id"),
    )


def _read_lines(file: BinaryIO, path: Path) -> tuple[list[Example], list[str]]:
    examples: list[Example] = []
    texts: list[str] = []
    for where, line in _lines(file, path):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON ({_reason(error)}); "
                "each line has to be one whole object: {...}"
            ) from None
        read = _plain(_Record(fields, where))
        if isinstance(read, str):
            texts.append(read)
        else:
            examples.append(read)
    return examples, texts


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    """Where each line stands, and its text; blank lines are left out."""
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


def _read_list(file: BinaryIO, path: Path, format: str) -> tuple[list[Example], list[str]]:
    records = _json_list(file.read().removeprefix(_BYTE_ORDER_MARK), path)
    if format == "auto":
        zsre = records and isinstance(records[0], Mapping) and "src" in records[0]
        format = "zsre" if zsre else "counterfact"
    examples = []
    for number, fields in enumerate(records):
        record = _Record(fields, f"{path}, record {number}")
        example = _zsre(record) if format == "zsre" else _counterfact(record)
        if example is not None:
            examples.append(example)
    if len(examples) < len(records):
        skipped = len(records) - len(examples)
        log.warning("%s: left out %d of %d: their alt is empty", path, skipped, len(records))
    return examples, []


def _json_list(raw: bytes, path: Path) -> list[Any]:
    try:
        records = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}{where} is not JSON ({_reason(error)}); "
            "the file has to be one list of records: [{...}, {...}]"
        ) from None
    if not isinstance(records, list):
        raise DataError(
            f"{path} is {_kind(records)}, and has to be a list of records: [{{...}}, {{...}}]; "
            "one object per line is format 'jsonl'"
        )
    return records


def _first_character(file: BinaryIO, path: Path) -> bytes:
    """The first byte that is no white space; the file is then at its start again."""
    start = file.read(len(_BYTE_ORDER_MARK))
    character = start.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]
    while not character:
        more = file.read(4096)
        if not more:
            raise DataError(f"{path} is empty; the formats are in docs/training-data.md")
        character = more.lstrip()[:1]
    file.seek(0)
    return character


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: object) -> str:
    return _JSON_TYPES.get(type(value), type(value).__name__)
