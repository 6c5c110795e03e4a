"""`mend-parallel edit`, `list`, `undo`, `apply`, `export` and `show`: from a file of requests to a
journal, other tools' files and a picture, and nothing half done on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from edited import FACTS, logits_on_facts
from plan_toys import Toy
from safetensors.torch import load_file
from test_edits import close
from toys import tokenizer_for
from typer.testing import CliRunner, Result

from easyedit_mend_parallel import Journal, MendParallel, MENDParallelHyperParams, load_edit
from easyedit_mend_parallel.cli.app import app, main
from easyedit_mend_parallel.edits.picture import sizes_of, tokens_of

RECORDS = [
    {**FACTS[0], "ground_truth": "Paris", "rephrases": ["the town of France is"]},
    {**FACTS[1], "neighbours": ["my old cat"], "ground_truth": "Shakespeare"},
    FACTS[2],
]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path)
    toy.tokenizer.save_pretrained(toy.directory)
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    return toy


def config(toy: Toy, **changes: Any) -> Path:
    return toy.config(tokenizer_class="PreTrainedTokenizerFast", **changes)


def run(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(one) for one in arguments])


def done(*arguments: Any) -> str:
    # Edits of random weights need not hold; tests/test_sequence.py has what is said of that.
    unasked = ["--no-verify"] if arguments[0] == "edit" else []
    result = run(*arguments, *unasked)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def printed(*arguments: Any) -> Any:
    return json.loads(done(*arguments, "--json"))


def edit(toy: Toy, *options: Any, **changes: Any) -> Path:
    """The journal of `RECORDS`, each an edit of its own."""
    folder = toy.folder / "edits"
    facts = toy.folder / "facts.jsonl"
    done("edit", config(toy, **changes), "--requests", facts, "--save", folder, *options)
    return folder


def reference(toy: Toy, *numbers: int) -> Any:
    """The toy with those edits of its journal."""
    model = transformers.AutoModelForCausalLM.from_pretrained(toy.directory)
    for number in numbers:
        load_edit(toy.folder / "edits" / f"{number:04}.safetensors").apply(model)
    return model


def test_edits_are_made_shown_and_kept(toy: Toy) -> None:
    facts, folder = toy.folder / "facts.jsonl", toy.folder / "edits"
    found = printed("edit", config(toy), "--requests", facts, "--save", folder)

    assert [one["number"] for one in found["edits"]] == [1, 2, 3]
    assert [(row["edit"], row["role"]) for row in found["answers"]] == [
        (1, "new"),
        (1, "old"),
        (2, "new"),
        (2, "old"),
        (3, "new"),
    ]
    again = MendParallel(
        reference(toy), toy.tokenizer, MENDParallelHyperParams.from_hparams(config(toy))
    )
    for fact in FACTS:
        again.edit(fact)
    assert close(logits_on_facts(reference(toy, 1, 2, 3)), logits_on_facts(again.model), 1e-5)
    assert Journal(folder).edit(2).requests[0].other["neighbours"] == [
        {"prompt": "my old cat", "target": ""}
    ]


def test_the_table_of_an_edit_has_the_probabilities_that_the_model_gives(toy: Toy) -> None:
    facts = toy.folder / "facts.jsonl"
    found = printed("edit", config(toy), "--requests", facts, "--save", toy.folder / "edits")
    from easyedit_mend_parallel.forward.batch import make_batch
    from easyedit_mend_parallel.forward.requests import as_requests

    new = [row for row in found["answers"] if row["role"] == "new"]
    for when, model in (("before", reference(toy)), ("after", reference(toy, 1, 2, 3))):
        batch = make_batch(model, tokenizer_for(model), as_requests(FACTS))
        expected = batch.losses_on(model).neg().exp().tolist()
        assert [row[when] for row in new] == pytest.approx(expected, rel=1e-3)


def test_what_the_edited_model_writes_is_printed_one_line_for_each_request(toy: Toy) -> None:
    facts, folder = toy.folder / "facts.jsonl", toy.folder / "edits"
    asked = ("edit", config(toy), "--requests", facts)
    texts = printed(*asked, "--save", folder)["texts"]
    model = reference(toy, 1, 2, 3)
    assert [one["prompt"] for one in texts] == [fact["prompt"] for fact in FACTS]
    for one in texts:
        ids = toy.tokenizer(one["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert one["text"] == toy.tokenizer.decode(out, skip_special_tokens=True)
    said = " ".join(done(*asked).split())
    assert all(" ".join(f"{one['prompt']} {one['text']}".split()) in said for one in texts)


def test_one_edit_of_all_requests_is_one_entry(toy: Toy) -> None:
    folder = edit(toy, "--together", "--half")
    assert [len(Journal(folder).edit(n).requests) for n in Journal(folder).applied] == [3]


def test_a_second_run_edits_the_edited_model(toy: Toy) -> None:
    folder = edit(toy)
    edit(toy)
    assert Journal(folder).applied == [1, 2, 3, 4, 5, 6]
    weights = Journal(folder).edit(4).about["base"]["weights"].values()
    assert all(weight["before"] != weight["base"] for weight in weights)


def test_without_a_journal_it_says_that_nothing_is_kept(toy: Toy) -> None:
    before = sorted(os.listdir(toy.folder))
    assert "not kept" in done("edit", config(toy), "--requests", toy.folder / "facts.jsonl")
    assert set(os.listdir(toy.folder)) - set(before) == {"toy.yaml"}


def test_an_interrupt_leaves_whole_edits_and_exits_with_130(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, calls = MendParallel.edit, []

    def interrupted(self: MendParallel, *arguments: Any, **options: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(self, *arguments, **options)

    monkeypatch.setattr(MendParallel, "edit", interrupted)
    facts, folder = toy.folder / "facts.jsonl", toy.folder / "edits"
    arguments = ["edit", config(toy), "--requests", facts, "--save", folder]
    monkeypatch.setattr("sys.argv", ["mend-parallel", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert Journal(folder).applied == [1, 2]
    assert sorted(os.listdir(folder)) == ["0001.safetensors", "0002.safetensors", "journal.json"]


def test_list_and_undo_and_back(toy: Toy) -> None:
    folder = edit(toy)
    assert "Hamlet → a stone" in done("list", folder)
    assert [(one["number"], one["applied"]) for one in printed("list", folder)] == [
        (1, True),
        (2, True),
        (3, True),
    ]
    assert printed("undo", folder) == {"number": 3, "applied": [1, 2]}
    assert "edit 1 is undone; applied: 2" in done("undo", folder, 1)
    assert printed("undo", folder, 1, "--back") == {"number": 1, "applied": [2, 1]}
    assert "undone" in done("list", folder)


def test_apply_saves_the_base_with_what_is_applied(toy: Toy) -> None:
    folder, out = edit(toy), toy.folder / "edited"
    done("undo", folder, 2)
    assert "edit 1, 3" in done("apply", folder, config(toy), "--out", out)
    saved = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert close(logits_on_facts(saved), logits_on_facts(reference(toy, 1, 3)), 1e-6)
    assert transformers.AutoTokenizer.from_pretrained(out).vocab_size == toy.tokenizer.vocab_size


def test_apply_from_an_offloaded_base_gives_the_same_checkpoint(toy: Toy) -> None:
    folder, out = edit(toy), toy.folder / "edited"
    kwargs = {
        "device_map": toy.blocks_on(*["cpu"] * 4, "disk", "disk"),
        "offload_folder": str(toy.folder / "offloaded"),
    }
    done("apply", folder, config(toy, model_kwargs=kwargs, apply="output"), "--out", out)
    saved = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert close(logits_on_facts(saved), logits_on_facts(reference(toy, 1, 2, 3)), 1e-5)


def test_export_writes_an_adapter_or_a_delta(toy: Toy) -> None:
    import peft

    folder = edit(toy)
    fresh = reference(toy)
    done("export", folder, "--peft", toy.folder / "adapter")
    adapted = peft.PeftModel.from_pretrained(fresh, toy.folder / "adapter").eval()
    expected = logits_on_facts(reference(toy, 1, 2, 3))
    assert close(logits_on_facts(fresh, adapted), expected, 1e-4)

    one = printed("export", folder / "0001.safetensors", "--delta", toy.folder / "d", "--rank", 2)
    assert one["rows"] == 2
    assert set(one["errors"]) == set(load_file(toy.folder / "d")) == set(toy.targets)


def test_show_says_how_large_an_edit_is_where_and_for_which_token(toy: Toy) -> None:
    folder = edit(toy)
    found = printed("show", folder / "0001.safetensors")
    saved = load_edit(folder / "0001.safetensors")
    for target in found["targets"]:
        update = saved.updates[target["name"]]
        assert target["tokens"] == ["the", "capital", "of", "France", "is", "Rome"]
        assert sum(target["rows"]) == pytest.approx(
            float((update.keys.norm(dim=1) * update.values.norm(dim=1)).sum()), rel=1e-5
        )
        assert target["rows"][-1] == 0  # nothing is predicted after the last token
        assert target["place"] == "cpu"
    shown = done("show", folder / "0001.safetensors")
    assert "tokens: the · capital · of · France · is · Rome" in shown
    assert "█" in shown


def test_all_edits_of_a_journal_are_shown_with_their_tokens_one_after_the_other(toy: Toy) -> None:
    folder = edit(toy)
    together = Journal(folder).combined()
    parts = [Journal(folder).edit(number) for number in (1, 2, 3)]
    for position, target in enumerate(sizes_of(together)):
        singles = [sizes_of(part)[position] for part in parts]
        assert target.rows == [size for one in singles for size in one.rows]
        assert tokens_of(together, target) == [
            text for part, one in zip(parts, singles, strict=True) for text in tokens_of(part, one)
        ]


def test_show_asks_the_model_before_and_after(toy: Toy) -> None:
    folder = edit(toy)
    path = folder / "0002.safetensors"
    found = printed("show", path, "--config", config(toy), "--png", toy.folder / "p.png")
    kinds = [(one["kind"], one["role"], one["answer"]) for one in found["answers"]]
    assert kinds[:2] == [("prompt", "new", "a stone"), ("prompt", "old", "Shakespeare")]
    assert kinds[2][:2] == ("neighbour", "old")  # the model's own next word
    neighbour = found["answers"][2]
    assert neighbour["before"] > 1 / toy.tokenizer.vocab_size
    assert found["answers"][0]["before"] != found["answers"][0]["after"]
    assert (toy.folder / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "rephrase" in done("show", folder, "--config", config(toy))


def test_an_edit_of_an_encoder_decoder_is_shown_with_the_tokens_of_each_side(
    tmp_path: Path,
) -> None:
    toy = Toy(tmp_path, "t5")
    toy.tokenizer.save_pretrained(toy.directory)
    (tmp_path / "facts.jsonl").write_text(json.dumps(RECORDS[1]))
    folder = edit(toy)
    found = printed("show", folder, "--config", config(toy), "--png", tmp_path / "p.png")
    tokens = {one["name"].split(".")[0]: one["tokens"] for one in found["targets"]}
    assert tokens["encoder"] == ["who", "wrote", "Hamlet", "</s>"]
    assert tokens["decoder"] == ["<pad>", "a", "stone"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit", "{config}", "--requests", "{folder}/nothing"], "cannot be read"),
        (
            ["edit", "{config}", "--requests", "{folder}/facts.jsonl", "--save", "{folder}"],
            "is no journal",
        ),
        (["list", "{folder}/nowhere"], "no journal with an edit"),
        (["undo", "{folder}/edits", "7"], "no edit 7"),
        (["undo", "{folder}/edits", "1", "--back"], "is applied already"),
        (["apply", "{folder}/edits", "{config}", "--out", "{folder}"], "name a new folder"),
        (["export", "{folder}/edits", "--peft", "{folder}"], "name a new folder"),
        (["show", "{folder}/toy.yaml"], "not a whole safetensors file"),
        (["apply", "{folder}/edits", "{other}", "--out", "{folder}/out"], "another base model"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_1(
    arguments: list[str],
    message: str,
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(toy)
    Toy(toy.folder / "other", seed=4).tokenizer.save_pretrained(toy.folder / "other" / "model")
    other = config(toy, model_name=str(toy.folder / "other" / "model")).rename(
        toy.folder / "other.yaml"
    )
    places = {"folder": toy.folder, "config": config(toy), "other": other}
    before = {path: path.stat().st_mtime_ns for path in toy.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["mend-parallel", *(a.format(**places) for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    after = {path: path.stat().st_mtime_ns for path in toy.folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "arguments", [["export", "x"], ["export", "x", "--peft", "a", "--delta", "b"], ["edit", "x"]]
)
def test_wrong_arguments_exit_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_back_needs_a_number(toy: Toy) -> None:
    assert run("undo", edit(toy), "--back").exit_code == 2
