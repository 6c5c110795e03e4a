"""`mend-parallel evaluate`: figures of a file's facts or of a journal, a record of every answer
that is whole or not there, and an exit code that a script can go by."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from plan_toys import Toy
from test_cli_edits import config, done, edit, printed, run, toy

from easyedit_mend_parallel.cli.app import main

__all__ = ["toy"]

MORE = {"portability": [{"prompt": "the river of France is", "target": "a sea"}]}


def facts(toy: Toy) -> Path:
    return toy.folder / "facts.jsonl"


@pytest.mark.parametrize("how", ["one-by-one", "sequence", "batch"])
def test_facts_are_edited_and_judged_and_nothing_is_kept(how: str, toy: Toy) -> None:
    before = sorted(os.listdir(toy.folder))
    lines, png = toy.folder / "answers.jsonl", toy.folder / "figures.png"
    found = printed(
        *("evaluate", config(toy), "--requests", facts(toy), "--how", how),
        *("--answers", lines, "--png", png),
    )
    assert (found["requests"], found["how"], found["missed"]) == (3, how, [])
    assert {"edit", "rephrase", "neighbours", "answer_first", "perplexity"} <= set(found["after"])
    for score in found["after"].values():
        assert score["low"] <= score["mean"] <= score["high"]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    edits = [one for one in records if one["kind"] == "edit"]
    assert len(edits) == found["after"]["edit"]["n"] == 3
    assert sum(one["after"]["value"] for one in edits) / 3 == found["after"]["edit"]["mean"]
    assert all(one["free"]["after"]["text"] for one in edits)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert set(os.listdir(toy.folder)) == {*before, "toy.yaml", lines.name, png.name}


def test_a_journal_is_judged_as_it_is(toy: Toy) -> None:
    folder = edit(toy)
    done("undo", folder, 2)
    found = printed("evaluate", config(toy), "--requests", folder)
    assert (found["requests"], found["how"]) == (2, "journal")
    done("undo", folder, 3)
    alone = printed("evaluate", config(toy), "--requests", folder)
    single = printed("evaluate", config(toy), "--requests", facts(toy), "--first", 1)
    assert alone["after"]["edit"] == single["after"]["edit"]
    assert alone["after"]["perplexity"]["mean"] == pytest.approx(
        single["after"]["perplexity"]["mean"], rel=1e-3
    )
    done("undo", folder, 1)
    assert run("evaluate", config(toy), "--requests", folder).exit_code == 1


def test_a_table_has_every_figure(toy: Toy) -> None:
    said = done("evaluate", config(toy), "--requests", facts(toy))
    for name in ("edit", "neighbours", "repetition", "text_ends", "perplexity", "rewrite_acc"):
        assert name in said
    said = done("evaluate", config(toy), "--requests", facts(toy), "--no-free")
    assert "repetition" not in said


def test_a_figure_that_is_not_reached_is_an_exit_code_of_its_own(toy: Toy) -> None:
    asked = ("evaluate", config(toy), "--requests", facts(toy))
    assert run(*asked, "--at-least", "edit=0", "--at-most", "repetition=1").exit_code == 0
    assert run(*asked, "--at-least", "locality.near_acc=.1").exit_code == 3  # there is none
    below = run(*asked, "--at-most", "perplexity=0.5")
    assert below.exit_code == 3
    assert "above 0.5" in below.stdout
    assert run(*asked, "--at-least", "answer-once=1.1").exit_code == 3


@pytest.mark.parametrize(
    ("bound", "code", "message"),
    [
        ("edits=.9", 2, "did you mean 'edit'"),
        ("edit", 2, "write edit=0.95"),
        ("portability=.5", 1, "no fact has portability"),
        ("portability.hop_acc=.5", 1, "no fact has portability"),
    ],
)
def test_a_bound_that_cannot_be_checked_is_refused_before_a_model_is_loaded(
    bound: str, code: int, message: str, toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wrong = config(toy, model_name=str(toy.folder / "nowhere"))
    said = ["mend-parallel", "evaluate", str(wrong), "--requests", str(facts(toy))]
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.argv", [*said, "--at-least", bound])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_a_file_without_answers_is_refused_and_no_record_is_left(toy: Toy) -> None:
    path, lines = toy.folder / "other.jsonl", toy.folder / "answers.jsonl"
    for record, message in (
        ({"prompt": "who wrote Hamlet"}, "'target_new' is missing"),
        ({"text": "a cat sat on the mat"}, "1 unrelated texts and no edit"),
        ({"prompt": "who wrote", "target_new": "a stone " * 50}, "the model's context has 64"),
    ):
        path.write_text(json.dumps(record))
        found = run("evaluate", config(toy), "--requests", path, "--answers", lines)
        assert message in str(found.exception)
        assert not [name for name in os.listdir(toy.folder) if "answers" in name]


def test_a_question_that_needs_the_new_fact_and_one_more_is_asked(toy: Toy) -> None:
    path = toy.folder / "hops.jsonl"
    record = json.loads(facts(toy).read_text().splitlines()[0])
    path.write_text(json.dumps({**record, **MORE}))
    found = printed("evaluate", config(toy), "--requests", path)
    assert found["after"]["portability"]["n"] == 1
