"""Files of facts in three formats become the same examples; a bad one is refused, saying where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy_facts import ZSRE_RECORDS

from easyedit_mend_parallel import DataError
from easyedit_mend_parallel.evaluation.data import Example, LocalityText, read_examples
from easyedit_mend_parallel.forward.requests import Request

DOCUMENT = Path(__file__).parents[1] / "docs" / "training-data.md"

EDIT = {"prompt": "The capital of Norland is", "target_new": "Oslo"}
TEXT = {"text": "Water boils at a hundred degrees."}
ZSRE = {
    "subject": "Norland",
    "src": "What is the capital of Norland?",
    "alt": "Oslo",
    "answers": ["Norville"],
    "rephrase": "Norland's capital is which city?",
    "loc": "nq question: who wrote the anthem",
    "loc_ans": "Ada Lund",
}
FLAT = {
    "prompt": "The capital of Norland is",
    "target_new": "Oslo",
    "ground_truth": "Norville",
    "rephrase_prompt": "The government of Norland sits in",
    "locality_prompt": "The capital of Westmark is",
    "locality_ground_truth": "Norville",
}
NESTED = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "subject": "Norland",
        "relation_id": "P36",
        "target_new": {"str": "Oslo", "id": "Q1"},
        "target_true": {"str": "Norville", "id": "Q2"},
    },
    "paraphrase_prompts": ["Norland is governed from", "Norland's capital is"],
    "neighborhood_prompts": ["The capital of Westmark is", "The capital of Eastmark is"],
    "generation_prompts": ["Norland is"],
}


def lines(tmp_path: Path, *records: Any) -> Path:
    """A JSONL file; a record that is a string is written as it is."""
    path = tmp_path / "facts.jsonl"
    rows = [row if isinstance(row, str) else json.dumps(row) for row in records]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def listed(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def refusal(path: Path, format: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, format)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_an_edit_needs_a_prompt_and_a_target_alone(tmp_path: Path) -> None:
    examples, texts = read_examples(lines(tmp_path, EDIT))

    assert examples == [Example(Request("The capital of Norland is", "Oslo"))]
    assert texts == []
    assert examples[0].split == "all"


def test_every_field_of_a_line_reaches_its_example(tmp_path: Path) -> None:
    full = {
        **EDIT,
        "subject": "Norland",
        "relation": "capital",
        "ground_truth": "Norville",
        "rephrases": ["Norland is governed from", "Norland's capital is"],
        "neighbours": ["The capital of Sudland is"],
        "unrelated": ["Snow is white.", "It's nine."],
        "split": "new subjects",
    }

    (example,), texts = read_examples(lines(tmp_path, TEXT, full, "", TEXT))

    assert texts == [TEXT["text"]] * 2
    assert example == Example(
        Request(**EDIT, other={"subject": "Norland", "ground_truth": "Norville"}),
        rephrases=("Norland is governed from", "Norland's capital is"),
        neighbours=(LocalityText("The capital of Sudland is"),),
        unrelated=(LocalityText("Snow is white."), LocalityText("It's nine.")),
        subject="Norland",
        relation="capital",
        split="new subjects",
    )


def test_zsre_is_read_as_easyedit_reads_it(tmp_path: Path) -> None:
    examples, texts = read_examples(listed(tmp_path, ZSRE))

    assert examples == [
        Example(
            Request(
                "What is the capital of Norland?",
                "Oslo",
                {"subject": "Norland", "ground_truth": "Norville"},
            ),
            rephrases=("Norland's capital is which city?",),
            unrelated=(LocalityText("nq question: who wrote the anthem", "Ada Lund"),),
            subject="Norland",
        )
    ]
    assert texts == []


def test_zsre_records_without_a_target_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path, {**ZSRE, "alt": ""}, ZSRE, {**ZSRE, "alt": ""})

    examples, _ = read_examples(path)

    assert len(examples) == 1
    assert "left out 2 of 3" in caplog.text


@pytest.mark.parametrize("record", [FLAT, NESTED], ids=["flat", "as published"])
def test_both_forms_of_counterfact_give_neighbours_with_their_answers(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (example,), _ = read_examples(listed(tmp_path, record))

    assert (example.request.prompt, example.request.target_new) == tuple(EDIT.values())
    assert example.request.other["ground_truth"] == "Norville"
    assert example.neighbours[0] == LocalityText("The capital of Westmark is", "Norville")
    if record is NESTED:
        assert len(example.neighbours) == len(example.rephrases) == 2
        assert (example.subject, example.relation) == ("Norland", "P36")


def test_a_named_format_reads_what_looking_would_find(tmp_path: Path) -> None:
    for format, path in (
        ("zsre", listed(tmp_path, ZSRE)),
        ("jsonl", lines(tmp_path, EDIT)),
    ):
        assert read_examples(path, format) == read_examples(path)


def test_every_documented_line_is_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    edit, text, zsre, flat, nested = (json.loads(block) for block in blocks)

    (example,), texts = read_examples(lines(tmp_path, edit, text))
    assert example.neighbours
    assert len(texts) == 1
    for record in (zsre, flat, nested):
        assert len(read_examples(listed(tmp_path, record))[0]) == 1


@pytest.mark.parametrize("record", [EDIT, TEXT], ids=["edit", "text"])
def test_a_byte_order_mark_and_blank_lines_before_the_first_line_do_no_harm(
    tmp_path: Path, record: dict[str, str]
) -> None:
    path = lines(tmp_path, "", record, EDIT)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert read_examples(path)[0][-1].request.prompt == EDIT["prompt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"prompt": "A", "target_new": "b", "target_new": "c"}',
            "line 2 .*target_new has two values",
        ),
        ('{"prompt": "Half', r"line 2 is not JSON .*one whole object"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[]", "line 2 is a list; each record must be an object"),
        ("3", "line 2 is a number"),
        (without(EDIT, "target_new"), "line 2: 'target_new' is missing"),
        ({"prompt": "A", "target": "B"}, "line 2: 'target' .*did you mean 'target_new'"),
        ({**EDIT, "neighbors": []}, "line 2: 'neighbors' .*did you mean 'neighbours'"),
        ({**EDIT, "weather": 1}, "line 2: 'weather' is no field of an edit, which has prompt"),
        ({**EDIT, "target_new": 7}, "line 2: 'target_new' is a number, .*a string"),
        ({**EDIT, "target_new": " "}, "line 2: 'target_new' is empty"),
        ({**EDIT, "rephrases": "one"}, "line 2: 'rephrases' is a string; write a list"),
        ({**EDIT, "rephrases": ["one", None]}, r"line 2: 'rephrases\[1\]' is null"),
        ({**EDIT, "unrelated": [""]}, r"line 2: 'unrelated\[0\]' is empty"),
        ({**EDIT, "prompt": "\ud83d"}, "line 2: 'prompt' holds half of a surrogate pair"),
        ({**TEXT, "prompt": "A"}, "line 2: 'prompt' is there besides 'text'"),
        ({"text": ["A"]}, "line 2: 'text' is a list, .*a string"),
    ],
)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path: Path, line: Any, said: str) -> None:
    assert re.search(said, refusal(lines(tmp_path, EDIT, line, EDIT), "jsonl"))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (without(ZSRE, "loc_ans"), "record 1: 'loc_ans' is missing"),
        (without(ZSRE, "alt"), "record 1: 'alt' is missing"),
        ({**ZSRE, "alt": None}, "record 1: 'alt' is null"),
        ({**ZSRE, "answers": "Norville"}, "record 1: 'answers' is a string; write a list"),
        ("Norland", "record 1 is a string"),
    ],
)
def test_a_bad_record_of_zsre_is_refused_by_number_and_field(
    tmp_path: Path, record: Any, said: str
) -> None:
    assert re.search(said, refusal(listed(tmp_path, ZSRE, record)))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (without(FLAT, "rephrase_prompt"), "record 1: 'rephrase_prompt' is missing"),
        ({**FLAT, "locality_prompt": {}}, "record 1: 'locality_prompt' is an object"),
        ({**NESTED, "requested_rewrite": "x"}, "record 1: 'requested_rewrite' is a string"),
        (
            {**NESTED, "requested_rewrite": {**NESTED["requested_rewrite"], "prompt": "Norland"}},
            r"record 1, in 'requested_rewrite': 'prompt' has no {}",
        ),
        (
            {**NESTED, "requested_rewrite": {**NESTED["requested_rewrite"], "target_new": {}}},
            "record 1, in 'requested_rewrite', in 'target_new': 'str' is missing",
        ),
    ],
)
def test_a_bad_record_of_counterfact_is_refused_by_number_and_field(
    tmp_path: Path, record: Any, said: str
) -> None:
    assert re.search(said, refusal(listed(tmp_path, FLAT, record)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "holds no edit"),
        (b'{"text": "Snow is white."}', "holds 1 unrelated texts and no edit"),
        (b'{"prompt": "A", "target_new": "B"}\n{"prompt": "\xe9"}', "line 2 is not UTF-8"),
        (b'[\n{"src":\n "\xe9"}]', "line 3 is not UTF-8"),
        (b'[\n{"src": "A"},\n{"src" "B"}]', "line 3 is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[" + b"9" * 5000 + b"]", "is not JSON|record 0 is a number"),
    ],
)
def test_a_file_without_edits_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "facts"
    path.write_bytes(content)

    assert re.search(said, refusal(path))


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere.jsonl")
    assert "cannot be read" in refusal(tmp_path)


def test_one_object_is_no_list_and_an_unknown_format_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path, EDIT)

    assert "format 'jsonl'" in refusal(path, "zsre")
    with pytest.raises(DataError, match="did you mean 'counterfact'"):
        read_examples(path, "counterfacts")


def test_an_answer_of_a_locality_text_follows_it_after_a_space(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(ZSRE_RECORDS))
    examples, _ = read_examples(path)
    assert {example.unrelated[0].target[0] for example in examples} == {" "}
    assert LocalityText("who", "me") == LocalityText("who", " me")


def test_questions_that_need_the_new_fact_and_one_more_are_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    hop = {"New Question": "who is in Rome ?", "New Answer": "a cat"}
    path.write_text(json.dumps([{**ZSRE_RECORDS[0], "portability": hop}, ZSRE_RECORDS[1]]))
    examples, _ = read_examples(path)
    assert [one.prompt for one in examples[0].portability] == ["who is in Rome ?"]
    assert examples[1].portability == ()
    path.write_text(
        json.dumps({"prompt": "a", "target_new": "b", "portability": [{"prompt": "c"}]})
    )
    with pytest.raises(DataError, match=r"portability\[0\].*'target' is missing"):
        read_examples(path)
