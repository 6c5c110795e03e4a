"""Edits the same facts by this package and by EasyEdit's own methods, and judges all by one judge.

    PYTHONPATH=EASYEDIT python scripts/quality/contestants.py --easyedit EASYEDIT --work WORK \
        --facts validation.jsonl --out contestants.json

SmolLM2-135M-Instruct on one thread. Single edits first, then edits one after another in one model.
Results are written after each part of a method; the parts that are in `--out` are not run again.
See docs/experiments.md for the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from batch_measures import Fact, read_facts
from contestant_settings import METHODS
from contestants_easyedit import EasyEdits
from contestants_shown import COLUMNS, MEASURES, plot, table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.editor import rollback_all
from easyedit_mend_parallel.evaluation import Answers, Score, figures, held_text, record
from easyedit_mend_parallel.evaluation.questions import EDIT
from easyedit_mend_parallel.evaluation.recording import answers_to
from easyedit_mend_parallel.method.preserved_text import lines_of

SOLVED = {"aggregate": "least_squares", "sequence": "solve"}
FIRM = SOLVED | {"max_step": 2.0, "aggregate_options": {"preserved_text_weight": 0.1}}
GOING_ON = {"preserved_text_weight": 0.1, "continuation_weight": 10.0}
OURS: dict[str, dict[str, Any]] = {
    "weight": SOLVED,
    "weight, max_step 2": FIRM,
    "weight, continuation": FIRM | {"aggregate_options": GOING_ON},
    "scoped": {"apply": "scoped"},
}
"""{name here: this package's hyperparameters}."""
FREE = 20
"""How many facts are also asked in free text."""
ENDS = 10
"""How many of the first and of the last edits in a row are also judged by themselves."""
HELD, LENGTH = 80, 256
"""Texts whose perplexity is measured, and the tokens of each."""


class Ours:
    """This package, with the archive that ships for each way to apply an edit."""

    alone, at_once = False, 1

    def __init__(self, name: str, model: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model).eval().requires_grad_(False)
        hparams = MENDParallelHyperParams.from_hparams(str(demo_hparams()))
        hparams.archive = str(demo_archive(scoped=name == "scoped"))
        hparams.on_worse = "ignore"  # an edit that fails is counted
        for field, value in OURS[name].items():
            setattr(hparams, field, value)
        self.editor = MendParallel(self.model, self.tokenizer, hparams)

    def edit(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self.editor.edit(fact.request)

    def restore(self) -> None:
        rollback_all(self.model)

    @contextmanager
    def asked(self, prompt_tokens: int | None) -> Iterator[Any]:
        yield self.model


class Judge:
    """The unedited model's answers to every question about the facts, and those of edited ones."""

    def __init__(self, model: Path, facts: Sequence[Fact], unrelated: Sequence[str]) -> None:
        base = AutoModelForCausalLM.from_pretrained(model).eval().requires_grad_(False)
        asked = [
            {
                **fact.request,
                "rephrases": list(fact.rephrases),
                "neighbours": list(fact.neighbours),
                "unrelated": [unrelated[number % len(unrelated)]],
            }
            for number, fact in enumerate(facts)
        ]
        tokenizer = AutoTokenizer.from_pretrained(model)
        self.recorded = record(base, tokenizer, asked, free=False)
        self.free = replace(self.recorded, free=True)
        self.held = held_texts(tokenizer)
        self.base = figures(self.recorded, self._written(base, range(min(FREE, len(facts)))))
        self.base["perplexity"] = perplexity(base, self.held)

    def answers(self, one: Any, requests: Sequence[int], free: Sequence[int]) -> Answers:
        """Everything about `requests`, and free text after the prompts of `free`."""
        numbers = self.recorded.numbers(requests)
        edits = [n for n in self._edits() if self.recorded.questions[n].request in set(free)]
        if not one.alone:
            with one.asked(None) as model:
                return answers_to(model, self.recorded, numbers) | self._written(model, free)
        found = Answers()
        for recorded, chosen in ((self.recorded, numbers), (self.free, edits)):
            for number in chosen:
                with one.asked(self._prompt_tokens(number)) as model:
                    found |= answers_to(model, recorded, [number])
        return found

    def perplexity(self, one: Any) -> Score:
        """Of the texts of `held_texts`, by the model as it is used."""
        with one.asked(None) as model:
            return perplexity(model, self.held, at_once=1 if one.alone else 4)

    def _written(self, model: Any, requests: Sequence[int]) -> Answers:
        chosen = [n for n in self._edits() if self.recorded.questions[n].request in set(requests)]
        return answers_to(model, self.free, chosen)

    def _edits(self) -> list[int]:
        return [n for n, one in enumerate(self.recorded.questions) if one.kind == EDIT]

    def _prompt_tokens(self, number: int) -> int:
        question = self.recorded.questions[number]
        ids = self.recorded.asker.tokenizer(question.prompt)["input_ids"]
        return len(ids)


def measured(
    one: Any, judge: Judge, facts: Sequence[Fact], asked: Any, found: Any, save: Callable[[], None]
) -> None:
    """Single edits, then edits one after another, into `found`, without the parts that are there.

    A part that its time does not suffice for ends early, with as many facts as it reached.
    """
    one.restore()
    if "single" not in found and one.at_once == 1:
        singly(one, judge, facts[: asked.single], asked, found)
        save()
    if not late(asked):
        in_a_row(one, judge, facts[: max(asked.marks, default=0)], asked, found, save)
    if not late(asked):
        found["done"] = True
        save()


def singly(one: Any, judge: Judge, facts: Sequence[Fact], asked: Any, found: Any) -> None:
    answers, seconds, made = Answers(), 0.0, 0
    started = time.process_time()
    for number, fact in enumerate(facts):
        if time.process_time() - started > asked.single_minutes * 60 or late(asked):
            break
        before = time.process_time()
        one.edit([fact])
        seconds += time.process_time() - before
        answers |= judge.answers(one, [number], [number] if number < asked.free else [])
        one.restore()
        made += 1
    if made:
        found["single"] = shown(judge, answers) | {"seconds an edit": seconds / made}


def in_a_row(
    one: Any, judge: Judge, facts: Sequence[Fact], asked: Any, found: Any, save: Callable[[], None]
) -> None:
    started, seconds = time.process_time(), 0.0
    for number in range(one.at_once, len(facts) + 1, one.at_once):
        before = time.process_time()
        one.edit(facts[number - one.at_once : number])
        seconds += time.process_time() - before
        out_of_time = time.process_time() - started > asked.minutes * 60 or late(asked)
        if number in asked.marks or out_of_time:
            judged = random.Random(0).sample(range(number), min(number, asked.judged))
            part = shown(judge, judge.answers(one, judged, judged[: asked.free]))
            for name, some in ends(number).items():
                part[name] = shown(judge, judge.answers(one, some, []))["edit"]
            if number in asked.held or number == len(facts) or out_of_time:
                part["perplexity"] = rounded(judge.perplexity(one))
            found[str(number)] = part | {"seconds an edit": seconds / number}
            save()
        if out_of_time:
            break
    one.restore()


def ends(number: int) -> dict[str, range]:
    """The first and the last of `number` edits in a row, where these are not the same."""
    if number < 2 * ENDS:
        return {}
    return {"first ten": range(ENDS), "last ten": range(number - ENDS, number)}


def held_texts(tokenizer: Any) -> Tensor:
    """The first tokens of the documentation that Python has on its own language:
    (`HELD`, `LENGTH`)."""
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = tokenizer(text, truncation=True, max_length=HELD * LENGTH)["input_ids"]
    return torch.tensor(ids).view(HELD, LENGTH)


def perplexity(model: Any, texts: Tensor, at_once: int = 4) -> Score:
    losses: list[float] = []
    for some in texts.split(at_once):
        logits = model(input_ids=some, attention_mask=torch.ones_like(some)).logits.float()
        each = cross_entropy(logits[:, :-1].mT, some[:, 1:], reduction="none")
        losses += each.sum(1).tolist()
    return Score.of_perplexity(losses, [LENGTH - 1] * len(losses))


def late(asked: Any) -> bool:
    return bool(asked.until) and time.strftime("%H:%M") >= asked.until


def shown(judge: Judge, answers: Answers) -> dict[str, Any]:
    """{measure: [mean, low, high, n]}."""
    scores = figures(judge.recorded, answers)
    return {name: rounded(score) for name, score in scores.items() if name in MEASURES}


def rounded(score: Score) -> list[float]:
    return [round(x, 4) for x in (score.mean, score.low, score.high)] + [score.n]


def usable(fact: Fact) -> bool:
    """Whether every method can be asked: some put the subject's place into the prompt."""
    return bool(fact.subject) and str(fact.subject) in fact.prompt and "{" not in fact.prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--easyedit", type=Path, required=True, help="EasyEdit's repository")
    parser.add_argument("--work", type=Path, required=True, help="a folder for statistics")
    parser.add_argument("--facts", type=Path, nargs="+", required=True, help="JSON lines")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first of each file")
    parser.add_argument("--drawn", type=int, default=0, help="and those that scopes.py judged")
    parser.add_argument("--texts", type=Path, help="facts whose texts go into the statistics")
    parser.add_argument("--methods", nargs="+", default=[*OURS, *METHODS])
    parser.add_argument("--choice", type=int, nargs="*", default=[0], help="of the settings tried")
    parser.add_argument("--single", type=int, default=40, help="facts edited by themselves")
    parser.add_argument("--free", type=int, default=FREE, help="of them asked in free text")
    parser.add_argument("--marks", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--held", type=int, nargs="*", default=[100], help="marks with perplexity")
    parser.add_argument("--judged", type=int, default=100, help="facts, where more are in a row")
    parser.add_argument("--single-minutes", type=float, default=60.0, help="of one core")
    parser.add_argument("--minutes", type=float, default=60.0, help="for the edits in a row")
    parser.add_argument("--until", help="HH:MM, when to stop")
    parser.add_argument("--out", type=Path, required=True, help="JSON; a plot goes beside it")
    asked = parser.parse_args()
    asked.work, asked.out = asked.work.resolve(), asked.out.resolve()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = prepare()
    facts, unrelated = chosen_facts(asked)
    judge = Judge(model, facts, unrelated)
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    results["unedited"] = {name: rounded(score) for name, score in judge.base.items()}
    texts = statistics_texts(asked.texts)
    for name in asked.methods:
        for choice in asked.choice if name in METHODS else [0]:
            key = name if choice == 0 and asked.choice == [0] else f"{name}, settings {choice}"
            found = results.setdefault(key, {})
            if found.get("done") or late(asked):
                continue
            found.pop("error", None)

            def save() -> None:
                asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

            started = time.process_time()
            try:
                if name not in OURS and choice >= len(METHODS[name].tried):
                    del results[key]
                    continue
                if name in OURS:
                    one: Any = Ours(name, model)
                else:
                    fields = METHODS[name].fields(choice)
                    work = asked.work / f"{name}-{choice}"
                    one = EasyEdits(name, asked.easyedit, model, work, fields, texts)
                measured(one, judge, facts, asked, found, save)
            except Exception:  # the others go on
                traceback.print_exc()
                found["error"] = traceback.format_exc(limit=-3)
                save()
            print(f"{key}: {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
            print(json.dumps(results[key]), file=sys.stderr, flush=True)
    print(table(results, COLUMNS))
    plot(results, MEASURES[:4], asked.out.with_suffix(".png"))


def chosen_facts(asked: Any) -> tuple[list[Fact], list[str]]:
    """The facts in one random order, taken from all files in turn, and unrelated texts."""
    files, unrelated = [], dict[str, None]()
    for path in asked.facts:
        facts, texts = read_facts([path], None)
        unrelated |= dict.fromkeys(texts)
        drawn = {fact.prompt for fact in random.Random(0).sample(facts, len(facts))[: asked.drawn]}
        facts = [f for f in facts[asked.skip :] if usable(f) and f.prompt not in drawn]
        random.Random(0).shuffle(facts)
        files.append(facts)
    mixed = [fact for group in zip(*files, strict=False) for fact in group]
    return mixed[: max([asked.single, *asked.marks])], list(unrelated)


def statistics_texts(train: Path | None) -> list[str]:
    """The preserved and the held-out text that ship, and the first training facts' texts."""
    texts = [*lines_of(None), *held_text()]
    if train is not None:
        lines = map(json.loads, train.read_text(encoding="utf-8").splitlines()[:1000])
        texts += [f"{one['prompt']} {one['target_new']}." for one in lines if "prompt" in one]
    return texts


if __name__ == "__main__":
    main()
