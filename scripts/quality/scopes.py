"""Measures scoped edits: what each request's update does, and where it applies with N in the model.

    python scripts/quality/scopes.py --archive ARCHIVE --facts validation.jsonl --more train.jsonl

SmolLM2-135M-Instruct on one thread. All facts are edited and asked with all of them in the memory,
and with further requests of `--more`, up to N. A text in which no scope fires is the base's, to the
bit (a test), so only the others are run again. Knows nothing of how a scope decides.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from batch_measures import Fact, read_facts
from scope_names import aliases, near_names
from scope_routing import Routing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams
from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.evaluation.intervals import Score
from easyedit_mend_parallel.forward.batch import make_batch
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.text_batch import make_text_batch
from easyedit_mend_parallel.weights.gate import base_of
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, words_of
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory
from easyedit_mend_parallel.weights.subject_words import found_subject

AT_ONCE = 16


@dataclass(frozen=True)
class Asked:
    """One text, and the fact it is about: a rephrase or a neighbour's, by its number."""

    text: str
    fact: int


class Bench:
    """The model, edited by scope."""

    def __init__(self, archive: Path, untrained: bool) -> None:
        path = prepare()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)
        hparams = MENDParallelHyperParams.from_hparams(str(demo_hparams()))
        hparams.archive, hparams.apply, hparams.untrained = str(archive), "scoped", untrained
        hparams.on_worse = "ignore"  # an edit that fails is counted
        self.editor = MendParallel(self.model, self.tokenizer, hparams)
        assert self.editor.scoping is not None
        self.scope = self.editor.scoping.scope

    def states(self, texts: Sequence[str], kept: Path | None) -> dict[str, Tensor]:
        """The states of texts that a scope reads; those of a file that is kept are not run."""
        found: dict[str, Tensor] = torch.load(kept) if kept and kept.exists() else {}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        ids = [self.tokenizer(text)["input_ids"] for text in new]
        with base_of(self.model):
            for number, one in block_states(
                self.model, self.scope.blocks_name, self.scope.blocks, ids
            ):
                found[new[number]] = one.half()
        if kept and new:
            torch.save(found, kept)
        return {text: found[text].float() for text in texts}

    def found(self, prompt: str, states: Tensor) -> tuple[str, ...]:
        """The words of the subject that the scope finds in a prompt."""
        ids = self.tokenizer(prompt)["input_ids"]
        return found_subject(self.scope, states, ids, self.tokenizer.decode)

    def answered(self, asked: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether every token of its target is the argmax after each prompt."""
        found: list[bool] = [False] * len(asked)
        for chosen in _by_length([prompt for prompt, _ in asked]):
            requests = [Request(*asked[number]) for number in chosen]
            batch = make_batch(self.model, self.tokenizer, requests)
            for number, yes in zip(chosen, batch.answered(self.model).tolist(), strict=True):
                found[number] = yes
        return found

    @torch.no_grad()
    def same(self, texts: Sequence[str], last: bool) -> list[float]:
        """The share of positions (or the `last` alone) whose argmax is the base's."""
        found = [1.0] * len(texts)
        for chosen in _by_length(texts):
            batch = make_text_batch(self.model, self.tokenizer, [texts[n] for n in chosen])
            real = batch.inputs["attention_mask"].bool()
            if last:
                place = torch.arange(real.shape[1])
                real = place == torch.where(real, place, -1).amax(1, keepdim=True)
            sequence, position = real.nonzero(as_tuple=True)
            now = batch.predictions(self.model, sequence, position).argmax(-1)
            with base_of(self.model):
                was = batch.predictions(self.model, sequence, position).argmax(-1)
            for row, number in enumerate(chosen):
                found[number] = float((now == was)[sequence == row].float().mean())
        return found

    def written(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """What the model goes on with, greedily."""
        found: list[list[int]] = [[] for _ in prompts]
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        for chosen in _by_length(prompts):
            inputs = self.tokenizer([prompts[n] for n in chosen], return_tensors="pt", padding=True)
            ids = self.model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            for row, number in zip(ids, chosen, strict=True):
                found[number] = row[inputs["input_ids"].shape[1] :].tolist()
        self.tokenizer.padding_side = "right"
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--archive", type=Path, default=demo_archive())
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--split", help="only facts of this split")
    parser.add_argument("--first", type=int, help="how many of them")
    parser.add_argument("--skip", type=int, default=0, help="how many of them to leave out before")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="to fill the memory")
    parser.add_argument("--n", type=int, default=1000, help="requests in the memory")
    parser.add_argument("--free", type=int, default=60, help="facts that are asked in free text")
    parser.add_argument("--states", type=Path, help="a file that keeps hidden states of texts")
    parser.add_argument("--routing", action="store_true", help="make no edit: who fires alone")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    facts = read_facts([asked.facts], asked.split)[0]
    unrelated = read_facts([asked.facts], None)[1]
    facts = random.Random(0).sample(facts, len(facts))[asked.skip :][: asked.first]
    more = read_facts(asked.more, None)[0]
    known = {fact.prompt for fact in facts}
    more = [f for f in more if f.prompt not in known]
    more = random.Random(1).sample(more, min(len(more), max(0, asked.n - len(facts))))
    bench = Bench(asked.archive, asked.untrained)
    found = measured(bench, facts, more, unrelated, asked.states, asked.routing)
    if asked.free and not asked.routing:
        found["free text"] = free(bench, facts[: asked.free])
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


def measured(
    bench: Bench,
    facts: list[Fact],
    more: list[Fact],
    unrelated: list[str],
    kept: Path | None,
    routing_only: bool,
) -> dict[str, Any]:
    """Every measure, with 1, 10, 100, ... requests in the memory, subjects named and not."""
    every = [*facts, *more]
    rephrases = [Asked(text, n) for n, fact in enumerate(facts) for text in fact.rephrases]
    neighbours = [Asked(text, n) for n, fact in enumerate(facts) for text in fact.neighbours]
    rng, known = random.Random(2), [fact.subject or "" for fact in every]
    near = [Asked(text, n) for n, fact in enumerate(facts) for text in near_names(fact, known, rng)]
    short = [Asked(text, n) for n, fact in enumerate(facts) for text in aliases(fact)]
    texts = [one.text for one in (*rephrases, *neighbours, *near, *short)]
    texts = list(dict.fromkeys([*(fact.prompt for fact in facts), *texts, *unrelated]))
    states = bench.states([*dict.fromkeys([*texts, *(fact.prompt for fact in every)])], kept)
    requests = [scoped(bench.scope, fact, states[fact.prompt]) for fact in every]
    found = [bench.found(fact.prompt, states[fact.prompt]) for fact in every]
    routing = Routing(bench.scope, requests, found, texts, states)
    right = [a == b for a, b in zip(found, (one.subject for one in requests), strict=True)]
    shown: dict[str, Any] = {
        "thresholds": vars(bench.scope.thresholds),
        "subject found": score(right),
    }
    own_edit, own_rephrase = [True] * len(facts), [True] * len(rephrases)
    if not routing_only:
        own_edit, own_rephrase = effects(bench, routing, every, facts, rephrases, texts, shown)
    for named in (True, False):
        for size in sorted({1, 10, 100, len(facts), 1000, len(every)}):
            if size <= len(every):
                key = f"{size} in memory, subjects {'named' if named else 'not named'}"
                shown[key] = with_n(
                    routing, facts, rephrases, neighbours, unrelated, own_edit, own_rephrase,
                    len(every), size, named,
                )  # fmt: skip
        whole = range(len(every))
        fired = routing.fired([one.text for one in near], whole, named)
        key = f"{{}}, {len(every)} in memory, subjects {'named' if named else 'not named'}"
        shown[key.format("a near name fires none")] = score([one < 0 for one in fired])
        fired = routing.fired([one.text for one in short], whole, named)
        mine = [one == asked.fact for one, asked in zip(fired, short, strict=True)]
        shown[key.format("the last word of the name fires its own")] = score(mine)
        key = f"another fact of the subject, {'named' if named else 'not named'}"
        other = leaks(routing, facts, named)
        if other:
            shown[key] = score(other)
    return shown


def leaks(routing: Routing, facts: list[Fact], named: bool) -> list[bool]:
    """Whether each prompt about a subject that an edit has, and that asks something else, fires
    that edit, alone in the memory."""
    by_subject: dict[str, list[int]] = {}
    for number, fact in enumerate(facts):
        if fact.subject:
            by_subject.setdefault(fact.subject, []).append(number)
    return [
        routing.fired([facts[asked].prompt], [edited], named)[0] == edited
        for numbers in by_subject.values()
        for edited in numbers
        for asked in numbers
        if facts[asked].relation != facts[edited].relation
    ]


def effects(
    bench: Bench,
    routing: Routing,
    every: list[Fact],
    facts: list[Fact],
    rephrases: list[Asked],
    texts: list[str],
    shown: dict[str, Any],
) -> tuple[list[bool], list[bool]]:
    """Whether prompts and rephrases get their target with their own fact's update."""
    # The rows of a further request are made where it fires for some text.
    whole = range(len(every))
    hit = {n for named in (True, False) for n in routing.fired(texts, whole, named)}
    made = [*range(len(facts)), *sorted(n for n in hit if n >= len(facts))]
    started = time.perf_counter()
    for start in range(0, len(made), AT_ONCE):
        bench.editor.edit([every[n].request for n in made[start : start + AT_ONCE]])
    shown["seconds an edit"] = (time.perf_counter() - started) / len(made)
    memory = scoped_memory(bench.model)
    assert memory is not None
    shown["KiB an edit"] = memory.bytes / len(made) / 1024
    own_edit = bench.answered([(fact.prompt, fact.target_new) for fact in facts])
    own_rephrase = forced(bench, rephrases, facts)
    shown["with its own update"] = {"edit": score(own_edit), "rephrase": score(own_rephrase)}
    return own_edit, own_rephrase


def with_n(
    routing: Routing,
    facts: list[Fact],
    rephrases: list[Asked],
    neighbours: list[Asked],
    unrelated: list[str],
    own_edit: list[bool],
    own_rephrase: list[bool],
    total: int,
    size: int,
    named: bool,
) -> dict[str, Any]:
    """The measures with `size` requests in the memory: a text that another request's update
    reaches counts as failed, and a neighbour or unrelated text that any reaches as changed."""
    counts: dict[str, list[bool]] = {
        name: [] for name in ("edit", "rephrase", "neighbours", "unrelated", "rephrase to another")
    }
    for start in range(0, len(facts), size):
        group = list(range(start, min(start + size, len(facts))))
        memory = [*group, *range(len(facts), len(facts) + max(0, size - len(group)))]
        memory = [n for n in memory if n < total]
        mine = set(group)
        prompts = routing.fired([facts[n].prompt for n in group], memory, named)
        counts["edit"] += [own_edit[n] and f == n for n, f in zip(group, prompts, strict=True)]
        places = [p for p, one in enumerate(rephrases) if one.fact in mine]
        fired = routing.fired([rephrases[p].text for p in places], memory, named)
        for place, one in zip(places, fired, strict=True):
            counts["rephrase"].append(own_rephrase[place] and one == rephrases[place].fact)
            counts["rephrase to another"].append(one not in (-1, rephrases[place].fact))
        near = [one.text for one in neighbours if one.fact in mine]
        counts["neighbours"] += [one < 0 for one in routing.fired(near, memory, named)]
        if start == 0 or size >= 100:
            counts["unrelated"] += [one < 0 for one in routing.fired(unrelated, memory, named)]
    return {name: score(values) for name, values in counts.items() if values}


def forced(bench: Bench, rephrases: list[Asked], facts: list[Fact]) -> list[bool]:
    """Whether each rephrase gets the target with its own fact's update, whether or not it applies
    there.

    All scopes fire but those of other facts: each text is asked with its own request alone.
    """
    memory = scoped_memory(bench.model)
    assert memory is not None
    scope, found = memory.scope, [False] * len(rephrases)
    always = replace(scope.thresholds, subject=-1e9, alias=-1e9, states=-1e9)
    by_prompt = {request.prompt: request for request in memory.requests}
    held = dict(memory._held)
    try:
        memory.scope = replace(scope, thresholds=always)
        for place, one in enumerate(rephrases):
            mine = by_prompt[facts[one.fact].prompt]
            memory._held = {mine: held[mine]}
            memory._changed()
            found[place] = bench.answered([(one.text, facts[one.fact].target_new)])[0]
    finally:
        memory.scope, memory._held = scope, held
        memory._changed()
    return found


def free(bench: Bench, facts: list[Fact], tokens: int = 24) -> dict[str, Any]:
    """Whether free text begins with the answer, and how much of it repeats itself."""
    prompts = [fact.prompt for fact in facts]
    after = bench.written(prompts, tokens)
    targets = [Request(fact.prompt, fact.target_new).target_text for fact in facts]
    answers = [bench.tokenizer(target)["input_ids"] for target in targets]
    told = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    with base_of(bench.model):
        before = bench.written(prompts, tokens)
        given = [
            [*answer, *ids][:tokens]
            for answer, ids in zip(answers, bench.written(told, tokens), strict=True)
        ]
    first = [ids[: len(one)] == one for one, ids in zip(answers, after, strict=True)]
    return {
        "answer first": score(first),
        "repetition": sum(map(repeated, after)) / len(after),
        "repetition of the base": sum(map(repeated, before)) / len(before),
        "repetition of the base, given the answer": sum(map(repeated, given)) / len(given),
        "examples": [
            [prompt, bench.tokenizer.decode(ids)]
            for prompt, ids in zip(prompts[:5], after, strict=False)
        ],
    }


def repeated(ids: Sequence[int]) -> float:
    """The share of bigrams that were there before."""
    pairs = [tuple(ids[place : place + 2]) for place in range(len(ids) - 1)]
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def scoped(scope: Scope, fact: Fact, states: Tensor) -> ScopedRequest:
    keys, weights = scope.keys(states)
    return ScopedRequest(fact.prompt, fact.target_new, keys, weights, words_of(fact.subject or ""))


def score(values: Sequence[bool]) -> list[float]:
    """Share, 95 % interval, n."""
    found = Score.of([float(value) for value in values])
    return [*(round(one, 4) for one in (found.mean, found.low, found.high)), found.n]


def _by_length(texts: Sequence[str]) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    return [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]


if __name__ == "__main__":
    main()
