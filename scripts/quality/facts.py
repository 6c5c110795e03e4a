"""Writes the facts on which the archive is trained, chosen and tested: one seed, one split.

Makes them from data/ (see its card); knows neither model nor tokenizer. `python
scripts/quality/facts.py OUT --check` makes the files and compares them with split.json, which was
written before the first run; build() says what they hold.
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

import sources
from larger import BY_PART, LARGER, TRAINED
from sources import Relation, Subjects
from zsre import as_zsre

SPLIT = Path(__file__).with_name("split.json")
SEED = 20
#: Facts in each part; new relations share theirs evenly, trained ones as far as subjects go.
COUNTS = {
    "train": 2640,
    "validation new subjects": 180,
    "validation new relations": 160,
    "test new subjects": 360,
    "test new relations": 330,
    "train_more": 4000,
    "test_batch new subjects": 1000,
    "test_again new subjects": 360,
    "test_again new relations": 330,
    "train_wide": 6000,
    "test_third new subjects": 360,
    "test_third new relations": 330,
    "test_fourth new subjects": 1000,
    "test_fourth new relations": 330,
}
#: Parts about the test part's subjects, drawn anew: label -> relations.
FURTHER = {
    "test_batch": {"new subjects": TRAINED},
    "test_again": {"new subjects": TRAINED, "new relations": BY_PART["test"]},
    "test_third": {"new subjects": TRAINED, "new relations": BY_PART["test"]},
    "test_fourth": {"new subjects": TRAINED, "new relations": BY_PART["test"]},
}
#: How often a target is one of the `more_objects`, whose words have several tokens.
SHARE_OF_MORE = 0.44
NEIGHBOURS, UNRELATED = 2, 2
GENERATED_SENTENCES = 260
#: How often a rephrase of a larger training part follows an unrelated sentence.
SHARE_OF_LEADS = 0.2
#: Parts of the written sentences, and of the subjects of every kind, in the order of `PARTS`.
SENTENCES = {"validation": 110, "test": 130}
PARTS = ("test edits", "test neighbours", "validation edits", "validation neighbours", "train")
#: Cumulative ends of the parts among the subjects of a kind that training uses; and of those it
#: does not, where one of the two other parts has them all.
TRAINED_ENDS = (0.16, 0.24, 0.34, 0.40, 1.0)
HELD_OUT_ENDS = {"test": (0.75, 1.0, 1.0, 1.0, 1.0), "validation": (0.0, 0.0, 0.75, 1.0, 1.0)}


def fill(template: str, subject: str) -> str:
    """The template with its subject, its first letter a capital ("the Netherlands" may lead)."""
    text = template.format(subject)
    return text[0].upper() + text[1:]


def _ends(kind: str) -> tuple[float, ...]:
    if any(relation.kind == kind for relation in TRAINED.values()):
        return TRAINED_ENDS
    tested = any(relation.kind == kind for relation in BY_PART["test"].values())
    return HELD_OUT_ENDS["test" if tested else "validation"]


def parted(kinds: dict[str, Subjects], rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Part -> kind -> subjects, known ones first; no subject is in two parts.

    A name that is of two kinds (a state and a city) keeps the part that it was given first.
    """
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    given: set[str] = set()
    for kind, pools in kinds.items():
        for pool in (list(pools.known), list(pools.invented)):
            fresh = [name for name in pool if name.lower() not in given]
            given.update(name.lower() for name in fresh)
            rng.shuffle(fresh)
            start = 0
            for part, end in zip(PARTS, _ends(kind), strict=True):
                stop = round(end * len(fresh))
                parts[part].setdefault(kind, []).extend(fresh[start:stop])
                start = stop
    return parts


class Facts:
    """Draws facts: which subjects there are, what is true of them, and in which part each is."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kinds, self.grammar = sources.subjects(), sources.grammar()
        self.parts = parted(self.kinds, self.rng)

    def _truth(self, name: str, kind: str, subject: str) -> str | None:
        return self.kinds[kind].known.get(subject, {}).get(name)

    def _askable(self, name: str, relation: Relation, part: str) -> list[str]:
        """A part's subjects of a relation: known and invented ones take turns while both last."""
        known = self.kinds[relation.kind].known
        pool = self.parts[part][relation.kind]
        true = [subject for subject in pool if name in known.get(subject, {})]
        invented = [subject for subject in pool if subject not in known]
        if not true and not invented:  # cities, countries: nobody's truth is known
            invented = list(pool)
        self.rng.shuffle(true)
        self.rng.shuffle(invented)
        both = [subject for pair in zip(true, invented, strict=False) for subject in pair]
        shorter = len(both) // 2
        return both + true[shorter:] + invented[shorter:]

    def target(self, relation: Relation, subject: str, truth: str | None) -> str:
        """A false object: not the subject, nor the truth or a longer or shorter way to say it."""
        more = relation.more_objects
        pool = more if more and self.rng.random() < SHARE_OF_MORE else relation.objects
        said = (truth or "\n").lower()
        return self.rng.choice(
            [
                word
                for word in pool
                if word != subject and said not in word.lower() and word.lower() not in said
            ]
        )

    def draw(
        self, relations: dict[str, Relation], part: str, count: int
    ) -> Iterator[dict[str, Any]]:
        """`count` facts of the relations in turn, each subject once per relation."""
        waiting = {name: self._askable(name, rel, part) for name, rel in relations.items()}
        drawn = 0
        while drawn < count:
            if not any(waiting.values()):
                raise ValueError(f"{part}: {drawn} facts, and no subject is left for {count}")
            for name, relation in relations.items():
                if not waiting[name] or drawn == count:
                    continue
                subject = waiting[name].pop(0)
                truth = self._truth(name, relation.kind, subject)
                fact = {
                    "prompt": fill(relation.prompt, subject),
                    "target_new": self.target(relation, subject, truth),
                    "subject": subject,
                    "relation": name,
                }
                yield fact if truth is None else {**fact, "ground_truth": truth}
                drawn += 1

    def judged(
        self, relations: dict[str, Relation], part: str, label: str, texts: list[str], count: int
    ) -> list[dict[str, Any]]:
        """Facts of validation or test: one template that training never saw, and what must stay."""
        facts = list(self.draw(relations, f"{part} edits", count))
        for fact in facts:
            relation = relations[fact["relation"]]
            trained = (relation.prompt, *relation.rephrases)
            unseen = relation.validation if part == "validation" else relation.test
            fact["rephrases"] = [fill(unseen, fact["subject"])]
            others = self._askable(fact["relation"], relation, f"{part} neighbours")
            fact["neighbours"] = [
                fill(self.rng.choice(trained), other) for other in others[:NEIGHBOURS]
            ]
            fact["unrelated"] = self.rng.sample(texts, UNRELATED)
            fact["split"] = label
        self.rng.shuffle(facts)
        return facts

    def sentence(self) -> str:
        """A sentence of the grammar, its first letter a capital."""
        text = re.sub(
            r"\[([^]]*)\]",
            lambda slot: self.rng.choice(self.grammar.slots[slot[1]]),
            self.rng.choice(self.grammar.patterns),
        )
        return text[0].upper() + text[1:]


def build(seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """The records of train, validation and test, in the plain format (docs/training-data.md).

    Subjects of the three parts, and of the edits and neighbours of each, are disjoint; so are
    unrelated sentences. A trained relation has three templates beside its prompt for training, a
    fourth that only validation sees, and a fifth that only test sees. The relations of "new
    relations" are in no training record, and differ between validation and test.
    """
    facts = Facts(seed)
    written = sources.sentences()
    facts.rng.shuffle(written)
    texts = {part: [written.pop() for _ in range(n)] for part, n in SENTENCES.items()}
    generated: dict[str, None] = {}
    while len(generated) < GENERATED_SENTENCES:
        generated[facts.sentence()] = None
    train = list(facts.draw(TRAINED, "train", COUNTS["train"]))
    for fact in train:
        templates = TRAINED[fact["relation"]].rephrases
        fact["rephrases"] = [fill(template, fact["subject"]) for template in templates]
    facts.rng.shuffle(train)
    parts = {"train": train + [{"text": text} for text in [*written, *generated]]}
    for part in ("validation", "test"):
        parts[part] = []
        for label, relations in (("new subjects", TRAINED), ("new relations", BY_PART[part])):
            count = COUNTS[f"{part} {label}"]
            parts[part] += facts.judged(relations, part, label, texts[part], count)
    return parts


def build_further(part: str, test: Sequence[Any], seed: int = SEED) -> list[dict[str, Any]]:
    """Further facts about the test part's subjects, with its unrelated texts; see `FURTHER`."""
    facts = Facts(seed)
    facts.rng = random.Random(f"{seed}/{part}")
    texts = sorted({text for fact in test for text in fact["unrelated"]})
    made = []
    for label, relations in FURTHER[part].items():
        made += facts.judged(relations, "test", label, texts, COUNTS[f"{part} {label}"])
    return made


def build_larger(
    part: str, train: Sequence[dict[str, Any]], seed: int = SEED
) -> list[dict[str, Any]]:
    """A larger training part: more wordings, more relations, edits on any wording.

    Its subjects are those of training, its unrelated texts those of `train` and further ones of the
    grammar. It has a generator of its own, so that no other part depends on it.
    """
    facts, larger = Facts(seed), LARGER[part]
    facts.rng = random.Random(f"{seed}/{part}")
    texts = {record["text"]: None for record in train if "text" in record}
    size = len(texts) + larger.sentences
    while len(texts) < size:
        texts[facts.sentence()] = None
    leads = list(texts)
    made = list(facts.draw(larger.relations, "train", COUNTS[part]))
    for fact in made:
        subject, wordings = fact["subject"], larger.wordings(fact["relation"])
        if facts.rng.random() < 0.5:
            facts.rng.shuffle(wordings)
        prompt, *others = wordings
        rephrases = facts.rng.sample(others, min(larger.rephrases, len(others)))
        fact["prompt"] = fill(prompt, subject)
        fact["rephrases"] = [
            f"{facts.rng.choice(leads)} {fill(wording, subject)}"
            if facts.rng.random() < SHARE_OF_LEADS
            else fill(wording, subject)
            for wording in rephrases
        ]
    facts.rng.shuffle(made)
    return made + [{"text": text} for text in texts]


def files(seed: int = SEED) -> dict[str, bytes]:
    """Name -> content of every file of the split."""
    parts = build(seed)
    parts |= {part: build_larger(part, parts["train"], seed) for part in LARGER}
    parts |= {part: build_further(part, parts["test"], seed) for part in FURTHER}
    written = {
        f"{part}.jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        for part, records in parts.items()
    }
    for part in ("train", *LARGER):
        written[f"{part}_zsre.json"] = json.dumps(as_zsre(parts[part], seed), indent=0) + "\n"
    return {name: text.encode() for name, text in written.items()}


def described(contents: dict[str, bytes], seed: int = SEED) -> dict[str, Any]:
    """What split.json holds: the seed, counts and each file's sha256."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return {"seed": seed, "counts": COUNTS, "sha256": hashes}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the split of facts into a folder.")
    parser.add_argument("out", type=Path, help="folder to write into; it is made")
    parser.add_argument("--check", action="store_true", help="exit 1 if split.json differs")
    parser.add_argument("--fix", action="store_true", help="write split.json (before any run)")
    options = parser.parse_args()
    contents = files()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (options.out / name).write_bytes(content)
        print(f"{options.out / name}: {len(content):,} bytes")
    found = described(contents)
    if options.fix:
        SPLIT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.check:
        fixed = json.loads(SPLIT.read_text(encoding="utf-8"))
        if fixed != found:
            print(f"the split differs from {SPLIT}:\n{found}\nis not\n{fixed}", file=sys.stderr)
            return 1
        print(f"every file is the one that {SPLIT.name} names")
    return 0


if __name__ == "__main__":
    sys.exit(main())
