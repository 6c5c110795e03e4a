"""Facts to train and evaluate on, read from three formats into one: `docs/training-data.md`.

Knows what the fields of a record mean (`records` knows JSON); knows no tokenizer and no model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from easyedit_mend_parallel.errors import DataError, suggestion
from easyedit_mend_parallel.evaluation.records import Record, from_lines, from_list, is_list
from easyedit_mend_parallel.files import refuse_irregular
from easyedit_mend_parallel.forward.requests import Request

log = logging.getLogger(__name__)

FORMATS = ("auto", "jsonl", "zsre", "counterfact")
"""Formats that `read_examples` reads; "auto" detects the format from the start of the file."""
DEFAULT_SPLIT = "all"
"""The label of facts without one."""

_EDIT_FIELDS = (
    "prompt",
    "target_new",
    "ground_truth",
    "subject",
    "relation",
    "rephrases",
    "neighbours",
    "unrelated",
    "portability",
    "split",
)


@dataclass(frozen=True)
class LocalityText:
    """A text that an edit must not change.

    With a `target`, which follows `prompt` after a space (added if missing), only the positions
    that predict the target are compared. Without one, a neighbour is compared at its last position
    and an unrelated text at every position. `name` is its group's name in EasyEdit's requests.
    """

    prompt: str
    target: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.target and self.target[0] != " ":
            object.__setattr__(self, "target", " " + self.target)


@dataclass(frozen=True)
class Example:
    """One edit, with the texts that test it.

    Attributes:
        request: the edit. Its `other` has `subject` and `ground_truth` if the file has them.
        rephrases: further prompts after which the target is to follow.
        neighbours: prompts about other subjects, whose answers must not change.
        unrelated: texts about anything else, which must not change.
        portability: prompts, with their answers, to which the edit leads in one step of reasoning.
        subject: the person or thing that the edit is about.
        relation: the property of the subject that the edit changes. Facts of one relation can be
            neighbours.
        split: the label under which evaluation reports the edit.
    """

    request: Request
    rephrases: tuple[str, ...] = ()
    neighbours: tuple[LocalityText, ...] = ()
    unrelated: tuple[LocalityText, ...] = ()
    portability: tuple[LocalityText, ...] = ()
    subject: str | None = None
    relation: str | None = None
    split: str = DEFAULT_SPLIT


def read_examples(
    path: str | PathLike[str], format: str = "auto"
) -> tuple[list[Example], list[str]]:
    """Read the edits of a file, in its order, and its lines of unrelated text.

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
        refuse_irregular(path)
        with path.open("rb") as file:
            listed = is_list(file, path) if format == "auto" else format != "jsonl"
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


def _plain(record: Record) -> Example | str:
    """A line of the plain format: an edit, or an unrelated text."""
    if "text" in record:
        for name in record.fields:
            if name != "text":
                raise record.error(
                    name,
                    "is there besides 'text'; a line is an edit or an unrelated text, not both",
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
        neighbours=tuple(LocalityText(text) for text in record.texts("neighbours")),
        unrelated=tuple(LocalityText(text) for text in record.texts("unrelated")),
        portability=tuple(
            LocalityText(one.text("prompt"), one.text("target"))
            for one in record.inners("portability")
        ),
        subject=record.optional("subject"),
        relation=record.optional("relation"),
        split=record.optional("split") or DEFAULT_SPLIT,
    )


def _request(record: Record, prompt: str, target: str, truth: str | None) -> Request:
    other = {"subject": record.optional("subject"), "ground_truth": truth}
    said = {name: value for name, value in other.items() if value is not None}
    return Request(record.text(prompt), record.text(target), said)


def _zsre(record: Record) -> Example | None:
    """A record as EasyEdit's ZsreDataset reads it; None if `alt`, the new target, is empty."""
    if record.value("alt") == "":
        return None
    answers = record.texts("answers")
    return Example(
        request=_request(record, "src", "alt", answers[0] if answers else None),
        rephrases=(record.text("rephrase"),),
        unrelated=(LocalityText(record.text("loc"), record.text("loc_ans")),),
        portability=_one_hop(record),
        subject=record.optional("subject"),
    )


def _one_hop(record: Record) -> tuple[LocalityText, ...]:
    """The question that needs the new fact and one more, if the record has one."""
    if not isinstance(record.fields.get("portability"), dict):
        return ()
    hop = record.inner("portability")
    return (LocalityText(hop.text("New Question"), hop.text("New Answer"), "one_hop"),)


def _counterfact(record: Record) -> Example:
    """A record of EasyEdit's flat CounterFact, or of the original with `requested_rewrite`."""
    if "requested_rewrite" in record:
        return _original_counterfact(record)
    locality = LocalityText(record.text("locality_prompt"), record.text("locality_ground_truth"))
    return Example(
        request=_request(record, "prompt", "target_new", record.optional("ground_truth")),
        rephrases=(record.text("rephrase_prompt"),),
        neighbours=(locality,),
        portability=_one_hop(record),
        subject=record.optional("subject"),
    )


def _original_counterfact(record: Record) -> Example:
    rewrite = record.inner("requested_rewrite")
    prompt, subject = rewrite.text("prompt"), rewrite.text("subject")
    if "{}" not in prompt:
        raise rewrite.error("prompt", f"has no {{}} in place of the subject: {prompt!r}")
    truth = rewrite.inner("target_true").text("str")
    return Example(
        request=Request(
            prompt.replace("{}", subject),
            rewrite.inner("target_new").text("str"),
            {"subject": subject, "ground_truth": truth},
        ),
        rephrases=record.texts("paraphrase_prompts"),
        neighbours=tuple(
            LocalityText(text, truth) for text in record.texts("neighborhood_prompts")
        ),
        subject=subject,
        relation=rewrite.optional("relation_id"),
    )


def _read_lines(file: BinaryIO, path: Path) -> tuple[list[Example], list[str]]:
    examples: list[Example] = []
    texts: list[str] = []
    for record in from_lines(file, path):
        read = _plain(record)
        if isinstance(read, str):
            texts.append(read)
        else:
            examples.append(read)
    return examples, texts


def _read_list(file: BinaryIO, path: Path, format: str) -> tuple[list[Example], list[str]]:
    records = from_list(file, path)
    if format == "auto":
        format = "zsre" if records and "src" in records[0] else "counterfact"
    read = _zsre if format == "zsre" else _counterfact
    examples = [example for example in map(read, records) if example is not None]
    if len(examples) < len(records):
        skipped = len(records) - len(examples)
        log.warning("%s: left out %d of %d: their alt is empty", path, skipped, len(records))
    return examples, []
