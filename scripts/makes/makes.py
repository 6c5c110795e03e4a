"""Facts of three makes that share no template: invented, true records, written by hand.

`python scripts/makes/makes.py OUT --check` writes the files of training, validation and two tests,
and says whether each is the one that split.json names. Knows files of wordings and values, no
tokenizer and no model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DATA = HERE / "data"
SEED = 31
PARTS = ("train", "validation", "test")
LATER = ("test_again",)
"""Parts that were drawn later, from what the others left."""
INVENTED = {"train": 60, "validation": 12, "test": 13, "test_again": 13}
"""Facts of each invented relation; two of their subjects are neighbours that nothing edits."""
RECORDS = {"train": 60, "validation": 14, "test": 14, "test_again": 14}
"""Records of each relation at most, and as many again of those that only one part has."""
NEIGHBOURS = 4
"""Subjects of each part and relation that nothing edits, where it is evaluated."""
Fact = dict[str, Any]


def seed_of(make: str, parts: Sequence[str]) -> str:
    return f"{SEED}/{make}" if parts == PARTS else f"{SEED}/{make}/{parts[0]}"


def read(name: str) -> Any:
    return yaml.safe_load((DATA / name).read_text("utf-8"))


def read_records() -> dict[str, list[list[str]]]:
    """{relation: its [subject, object] pairs}, sorted by subject."""
    found: dict[str, list[list[str]]] = {}
    for line in (DATA / "records.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        subject = row.pop("subject")
        for relation, value in row.items():
            found.setdefault(relation, []).append([subject, value])
    return {relation: sorted(pairs) for relation, pairs in found.items()}


def invented() -> Iterator[tuple[str, Fact]]:
    """Facts of invented subjects; a fact has wordings of one style and one of the other."""
    data, taken = read("generated.yaml"), set[str]()
    for parts in (PARTS, LATER):
        yield from invented_in(parts, data, taken)


def invented_in(
    parts: Sequence[str], data: dict[str, Any], taken: set[str]
) -> Iterator[tuple[str, Fact]]:
    """The facts of these parts, about subjects that are not in `taken`, which are put there."""
    pools, rng = data["pools"], random.Random(seed_of("invented", parts))

    def filled(pattern: str) -> str:
        def drawn(match: re.Match[str]) -> str:
            name = match[1]
            if name == "last_lower":
                return str(rng.choice(pools["last"])).lower()
            return str(rng.choice(pools[name]))

        return re.sub(r"\{(\w+)\}", drawn, pattern)

    for relation, about in data["relations"].items():
        words = data["wordings"][relation]
        for part in parts:
            subjects: list[str] = []
            count = INVENTED[part] + (0 if part == "train" else NEIGHBOURS)
            while len(subjects) < count:
                subject = filled(rng.choice(data["subjects"][about["subject"]]))
                if subject not in taken:
                    taken.add(subject)
                    subjects.append(subject)
            edited, others = subjects[: INVENTED[part]], subjects[INVENTED[part] :]
            for subject in edited:
                target = filled(rng.choice(about["values"]))
                styles = [words["sentence"], words["sheet"]]
                rng.shuffle(styles)
                prompts = [*rng.sample(styles[0], 2), rng.choice(styles[1])]
                yield part, fact(rng, part, relation, subject, target, prompts, words, others)


def records() -> Iterator[tuple[str, Fact]]:
    """Facts of true records; the new object is another record's."""
    values = read_records()
    first, later = (random.Random(seed_of("records", parts)) for parts in (PARTS, LATER))
    for relation, words in read("records.yaml").items():
        pairs = [tuple(pair) for pair in values[relation]]
        first.shuffle(pairs)
        only = words.get("part")
        for part in (*reversed(PARTS), *LATER):  # training has what the tests left
            rng = later if part in LATER else first
            if only not in (None, part) or len(pairs) <= NEIGHBOURS:
                continue
            others = [] if part == "train" else [pairs.pop()[0] for _ in range(NEIGHBOURS)]
            count = RECORDS[part] * (2 if only else 1)
            edited, pairs = pairs[:count], pairs[count:]
            for subject, truth in edited:
                target = other_object(rng, values[relation], subject, truth)
                prompts = rng.sample(words["wordings"], len(words["wordings"]))
                yield (
                    part,
                    fact(rng, part, relation, subject, target, prompts, words, others)
                    | {"ground_truth": truth},
                )


def other_object(rng: random.Random, pairs: list[list[str]], subject: str, truth: str) -> str:
    """Another record's object; of a pair of subjects (word|language) one of the same language,
    and of a function's signature with the function's own name."""
    _, bar, language = subject.partition("|")
    fitting = [o for s, o in pairs if o != truth and (not bar or s.endswith(bar + language))]
    target = rng.choice(fitting)
    if "(" in truth and truth.endswith(")"):
        return truth.partition("(")[0] + "(" + target.partition("(")[2]
    return target


def handwritten() -> Iterator[tuple[str, Fact]]:
    """Facts of prompts written by hand: six subjects of each, two neighbours."""
    data = read("handwritten.yaml")
    for parts in (PARTS, LATER):
        rng = random.Random(seed_of("handwritten", parts))
        frames = [(part, frame) for part in parts for frame in data["frames"][part]]
        for part, (pool, targets, *prompts) in frames:
            subjects = data["pools"][pool][part]
            for number, subject in enumerate(subjects[:6]):
                target = targets[(number + rng.randrange(2)) % len(targets)]
                if part == "train":
                    words: dict[str, Any] = {}
                    given = rng.sample(prompts, len(prompts))
                else:
                    words, given = {"evaluation": prompts[-1]}, prompts[:-1]
                others = [] if part == "train" else subjects[6:]
                yield part, fact(rng, part, prompts[0], subject, target, given, words, others)


def fact(
    rng: random.Random,
    part: str,
    relation: str,
    subject: str,
    target: str,
    prompts: list[str],
    words: dict[str, Any],
    others: list[str],
) -> Fact:
    """One record of docs/training-data.md; in evaluation one rephrase, which training lacks."""
    asked = [put(prompt, subject) for prompt in prompts]
    found: Fact = {
        "prompt": asked[0],
        "target_new": target,
        "subject": subject.replace("|", ", "),
        "relation": relation,
        "rephrases": asked[1:] if part == "train" else [put(words["evaluation"], subject)],
    }
    if part != "train":
        two = rng.sample(others, 2)
        found["neighbours"] = [put(rng.choice(prompts), one) for one in two]
    return found


def put(wording: str, subject: str) -> str:
    """The wording about the subject; a subject of several parts fills {0}, {1}."""
    text = wording.format(*subject.split("|"))
    return text[0].upper() + text[1:] if wording.startswith("{}") and " " in subject else text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with split.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {part: [] for part in (*PARTS, *LATER)}
    for make, facts in (
        ("invented", invented()),
        ("records", records()),
        ("written by hand", handwritten()),
    ):
        for part, found in facts:
            split = {} if part == "train" else {"split": make}
            lines[part].append(json.dumps(found | split, ensure_ascii=False) + "\n")
    known = json.loads((HERE / "split.json").read_text()) if options.check else {}
    wrong = []
    for part in (*PARTS, *LATER):
        path = options.out / f"{part}_makes.jsonl"
        path.write_text("".join(lines[part]), "utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f'"{path.name}": {{"facts": {len(lines[part])}, "sha256": "{digest}"}},')
        if options.check and known[path.name] != {"facts": len(lines[part]), "sha256": digest}:
            wrong.append(path.name)
    if wrong:
        sys.exit(f"not the files that split.json names: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
