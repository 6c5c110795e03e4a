"""Trains a scope's encoder: rephrases must find their request, and other texts must find none.

Uses a contrastive loss over hidden states that are computed once (Khattab and Zaharia 2020); the
memory's other requests are the negatives. Knows no update and no hypernetwork.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.weights.scope import Scope

States = Mapping[str, Tensor]
"""{text: its states (T, D)}"""


SAME_RELATION = 8.0
"""The weight of a pair of text and request that ask the same, beside that of another pair: most
pairs do not."""


@dataclass(frozen=True)
class ScopeOptions:
    """How a scope is trained. A step has a memory of `facts` requests; `dimensions` is the width d
    of encoded states."""

    steps: int = 1500
    facts: int = 48
    dimensions: int = 96
    lr: float = 1e-3
    weight_decay: float = 1e-2
    unrelated: int = 8
    rephrases: int = 5
    seed: int = 0


class ScopeEncoder(nn.Module):
    """The parameters of a `Scope`, for training. The relation head reads the last `relation_width`
    numbers of a state: those of the lowest target's block."""

    def __init__(self, width: int, relation_width: int, dimensions: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, dimensions, bias=False)
        self.weigh = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.shift = nn.Parameter(torch.tensor(-14.0))
        self.relation = nn.Linear(relation_width, dimensions, bias=False)
        self.relation_scale = nn.Parameter(torch.tensor(12.0))
        self.relation_shift = nn.Parameter(torch.tensor(-6.0))
        for projection in (self.projection, self.relation):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def encoded(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded states (B, T, d), token weights (B, T), zero for padding, and a mask (B, T) that
        is false for padding."""
        width = max(len(text) for text in texts)
        states = torch.stack([F.pad(text, (0, 0, 0, width - len(text))) for text in texts])
        real = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
        weights = F.softplus(self.weigh(states)).squeeze(-1) * real
        return F.normalize(self.projection(states), dim=-1), weights, real

    def forward(self, queries: Sequence[Tensor], requests: Sequence[Tensor]) -> Tensor:
        """(Q, R): the logit of each request for each query, from standardised states."""
        tokens, _, real = self.encoded(queries)
        keys, weights, _ = self.encoded(requests)
        cosines = torch.einsum("qtd,rsd->qrts", tokens, keys)
        best = cosines.masked_fill(~real[:, None, :, None], -1.0).amax(2)
        share = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        return self.scale * (best * share).sum(-1) + self.shift

    def relations(self, queries: Sequence[Tensor], requests: Sequence[Tensor]) -> Tensor:
        """(Q, R): the relation head's logit of each request for each query."""
        size = self.relation.in_features
        last = torch.stack([request[-1, -size:] for request in requests])
        keys = F.normalize(self.relation(last), dim=-1)
        rows = [
            (F.normalize(self.relation(query[:, -size:]), dim=-1) @ keys.T).amax(0)
            for query in queries
        ]
        return self.relation_scale * torch.stack(rows) + self.relation_shift


def train_scope(
    blocks_name: str,
    blocks: tuple[int, ...],
    examples: Sequence[Example],
    unrelated: Sequence[str],
    states: States,
    options: ScopeOptions,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Scope:
    """Train a scope on `examples`, whose prompts and rephrases are in `states`, and on `unrelated`
    text. Its thresholds are 0; `choose_thresholds` sets them.

    Raises TrainingError if no example has a rephrase.
    """
    usable = [example for example in examples if example.rephrases]
    if len(usable) < 2:
        raise TrainingError(
            "a scope is trained on rephrases, and fewer than two of the facts have any: give "
            "facts with rephrases"
        )
    rng = random.Random(options.seed)
    torch.manual_seed(options.seed)
    sample = [states[e.request.prompt].float() for e in usable[:500]]
    rows = torch.cat(sample)
    mean, std = rows.mean(0), rows.std(0) + 1e-6
    encoder = ScopeEncoder(len(mean), len(mean) // len(blocks), options.dimensions)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), options.lr, weight_decay=options.weight_decay
    )
    draw = _Draws(usable, unrelated, options, rng)

    def standardised(texts: Sequence[str]) -> list[Tensor]:
        return [(states[text].float() - mean) / std for text in texts]

    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 - step / options.steps)
        requests, queries, answers = draw.step()
        logits = encoder(standardised(queries), standardised(requests))
        nobody = torch.zeros(len(queries), 1)
        loss = F.cross_entropy(torch.cat([logits, nobody], 1), torch.tensor(answers))
        if draw.has_relations:
            requests, queries = draw.relations()
            found = encoder.relations(standardised(queries), standardised(requests))
            loss = loss + _relation_loss(found)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step + 1, float(loss.detach()))
    return Scope(
        blocks_name,
        blocks,
        mean,
        std,
        encoder.projection.weight.detach().clone(),
        encoder.weigh.weight.detach()[0].clone(),
        encoder.weigh.bias.detach()[0].clone(),
        float(encoder.scale),
        float(encoder.shift),
        relation=encoder.relation.weight.detach().clone() if draw.has_relations else None,
        relation_scale=float(encoder.relation_scale),
        relation_shift=float(encoder.relation_shift),
    )


def _relation_loss(logits: Tensor) -> Tensor:
    """The loss of logits (Q, R) whose first R queries ask, in order, what the requests ask, and
    whose others ask nothing."""
    count, requests = logits.shape
    nobody = torch.zeros(count, 1)
    answers = torch.arange(count).clamp(max=requests)
    same = F.pad(torch.eye(requests), (0, 0, 0, count - requests))
    return F.cross_entropy(torch.cat([logits, nobody], 1), answers) + (
        F.binary_cross_entropy_with_logits(logits, same, pos_weight=torch.tensor(SAME_RELATION))
    )


class _Draws:
    """Samples a step: similar requests, texts about some of them, and texts about none."""

    def __init__(
        self,
        examples: Sequence[Example],
        unrelated: Sequence[str],
        options: ScopeOptions,
        rng: random.Random,
    ) -> None:
        self._examples, self._unrelated = examples, list(unrelated)
        self._options, self._rng = options, rng
        self._like: list[dict[str, list[int]]] = [{}, {}, {}]
        for number, example in enumerate(examples):
            for kind, names in enumerate(_names(example)):
                for name in names:
                    self._like[kind].setdefault(name, []).append(number)

    def step(self) -> tuple[list[str], list[str], list[int]]:
        """Prompts of R requests, Q texts, and the index of each text's request (R: none)."""
        rng, examples = self._rng, self._examples
        half = max(1, min(self._options.facts, len(examples)) // 2)
        chosen = dict.fromkeys(rng.sample(range(len(examples)), half))
        for number in list(chosen):
            chosen.setdefault(self._alike(number, (0.5, 0.8)))
        by_prompt: dict[str, int] = {}
        for number in chosen:
            by_prompt.setdefault(examples[number].request.prompt, number)
        members = list(by_prompt.values())
        facts = {_fact(examples[number]) for number in members}
        queries, answers = [], []
        for place, number in enumerate(members):
            queries.append(self._wording(number))
            answers.append(place)
        for _ in range(self._options.facts):
            other = self._alike(rng.choice(members), (0.35, 0.7))
            if _fact(examples[other]) not in facts:
                queries.append(self._wording(other))
                answers.append(len(members))
        count = min(self._options.unrelated, len(self._unrelated))
        queries += rng.sample(self._unrelated, count)
        answers += [len(members)] * count
        return list(by_prompt), queries, answers

    @property
    def has_relations(self) -> bool:
        """Whether the facts have two or more relations."""
        return len(self._like[2]) > 1

    def relations(self) -> tuple[list[str], list[str]]:
        """Prompts of R facts, each of another relation, and texts: for each of those a wording of
        it or of another fact of its relation, then unrelated ones."""
        rng, by_relation = self._rng, self._like[2]
        names = rng.sample(sorted(by_relation), min(self._options.facts, len(by_relation)))
        chosen = [rng.choice(by_relation[name]) for name in names]
        asked = [
            number if rng.random() < 0.5 else rng.choice(by_relation[name])
            for name, number in zip(names, chosen, strict=True)
        ]
        texts = [self._wording(number) for number in asked]
        texts += rng.sample(self._unrelated, min(self._options.unrelated, len(self._unrelated)))
        return [self._wording(number) for number in chosen], texts

    def _alike(self, number: int, shares: tuple[float, float]) -> int:
        """A fact with the same subject, with a word of the subject, or with the same relation."""
        u = self._rng.random()
        kind = 0 if u < shares[0] else 1 if u < shares[1] else 2
        names = _names(self._examples[number])[kind]
        pool = self._like[kind][self._rng.choice(names)] if names else range(len(self._examples))
        return self._rng.choice(list(pool) if len(pool) < 64 else pool)

    def _wording(self, number: int) -> str:
        example = self._examples[number]
        rephrases = example.rephrases[: self._options.rephrases]
        return self._rng.choice([example.request.prompt, *rephrases])


def _names(example: Example) -> tuple[list[str], list[str], list[str]]:
    """The subject of a fact, the words of its subject, and its relation."""
    subject = example.subject or ""
    relation = [] if example.relation is None else [example.relation]
    return ([subject] if subject else []), subject.split(), relation


def _fact(example: Example) -> tuple[str, str]:
    return example.subject or example.request.prompt, example.relation or ""
