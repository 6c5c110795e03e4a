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
from easyedit_mend_parallel.training.scope_draws import AskedTexts, ScopeDraws
from easyedit_mend_parallel.weights.scope import Scope, beside_each

States = Mapping[str, Tensor]
"""{text: its states (T, D)}"""
SubjectTokens = Callable[[str, str], Tensor]
"""(text, subject) -> which of the text's tokens belong to the subject (T,), bool."""


SAME_RELATION, SAME_SUBJECT = 8.0, 4.0
"""The weights of a pair of text and request that ask the same, and of one that asks something else
of the same subject, beside that of another pair."""


@dataclass(frozen=True)
class ScopeOptions:
    """How a scope is trained. A step has a memory of `facts` requests; `dimensions` is the width d
    of encoded states, `hidden` that of the relation head's hidden layer; `dropout` is the share of
    what both layers of that head read that is left out in a step."""

    steps: int = 1500
    facts: int = 48
    dimensions: int = 96
    hidden: int = 256
    dropout: float = 0.4
    lr: float = 1e-3
    weight_decay: float = 1e-2
    unrelated: int = 8
    rephrases: int = 5
    seed: int = 0


class ScopeEncoder(nn.Module):
    """The parameters of a `Scope`, for training. The relation head reads the last `relation_width`
    numbers of a state: those of the lowest target's block."""

    def __init__(self, width: int, relation_width: int, options: ScopeOptions) -> None:
        super().__init__()
        dimensions, hidden = options.dimensions, options.hidden
        self.projection = nn.Linear(width, dimensions, bias=False)
        self.weigh = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.shift = nn.Parameter(torch.tensor(-14.0))
        self.relation_hidden = nn.Linear(relation_width, hidden, bias=False)
        self.relation = nn.Linear(hidden, dimensions, bias=False)
        self.dropout = nn.Dropout(options.dropout)
        self.relation_scale = nn.Parameter(torch.tensor(12.0))
        self.relation_shift = nn.Parameter(torch.tensor(-6.0))
        self.subject = nn.Linear(3 * width, 1)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

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
        size = self.relation_hidden.in_features
        keys = self._asked(torch.stack([request[-1, -size:] for request in requests]))
        tokens = self._asked(torch.cat([query[:, -size:] for query in queries]))
        cosines = torch.split(tokens @ keys.T, [len(query) for query in queries])
        best = torch.stack([part.amax(0) for part in cosines])
        return self.relation_scale * best + self.relation_shift

    def _asked(self, states: Tensor) -> Tensor:
        hidden = F.gelu(self.relation_hidden(self.dropout(states)))
        return F.normalize(self.relation(self.dropout(hidden)), dim=-1)


def train_scope(
    blocks_name: str,
    blocks: tuple[int, ...],
    examples: Sequence[Example],
    unrelated: Sequence[str],
    states: States,
    options: ScopeOptions,
    subject_tokens: SubjectTokens | None = None,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Scope:
    """Train a scope on `examples`, whose prompts and rephrases are in `states`, and on `unrelated`
    text. Its thresholds are 0; `choose_thresholds` sets them. Without `subject_tokens` it has no
    subject head.

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
    sample = [states[e.request.prompt].float() for e in rng.sample(usable, min(500, len(usable)))]
    # In many models the first state is the same in every text, and far larger than the others.
    rows = torch.cat([one[1:] if len(one) > 1 else one for one in sample])
    mean, std = rows.mean(0), rows.std(0) + 1e-6
    encoder = ScopeEncoder(len(mean), len(mean) // len(blocks), options)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), options.lr, weight_decay=options.weight_decay
    )
    draw = ScopeDraws(
        usable,
        unrelated,
        rng,
        facts=options.facts,
        n_unrelated=options.unrelated,
        rephrases=options.rephrases,
    )
    if not draw.has_subjects:
        subject_tokens = None

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
            asked = draw.relations()
            found = encoder.relations(standardised(asked.texts), standardised(asked.requests))
            loss = loss + _relation_loss(found, asked)
        if subject_tokens is not None:
            loss = loss + _subject_loss(encoder, draw.subjects(), standardised, subject_tokens)
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
        relation_hidden=(
            encoder.relation_hidden.weight.detach().clone() if draw.has_relations else None
        ),
        subject=None if subject_tokens is None else encoder.subject.weight.detach()[0].clone(),
        subject_bias=0.0 if subject_tokens is None else float(encoder.subject.bias.detach()),
    )


def _relation_loss(logits: Tensor, asked: AskedTexts) -> Tensor:
    """The loss of the relation head's logits (Q, R): each pair of text and request by itself, and
    each text's choice between the requests and none."""
    same = asked.same.float()
    weights = 1 + (SAME_RELATION - 1) * same + (SAME_SUBJECT - 1) * asked.near
    pairs = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
    nobody = torch.zeros(len(logits), 1)
    right = torch.cat([asked.same, ~asked.same.any(1, keepdim=True)], 1)
    every = torch.cat([logits, nobody], 1)
    chosen = every.logsumexp(1) - every.masked_fill(~right, -torch.inf).logsumexp(1)
    return 2 * (pairs * weights).sum() / weights.sum() + chosen.mean()


def _subject_loss(
    encoder: ScopeEncoder,
    texts: Sequence[tuple[str, str]],
    standardised: Callable[[Sequence[str]], list[Tensor]],
    subject_tokens: SubjectTokens,
) -> Tensor:
    """The loss of the subject head on texts with their subjects."""
    states = standardised([text for text, _ in texts])
    logits = encoder.subject(torch.cat([beside_each(one) for one in states]))[:, 0]
    labels = torch.cat([subject_tokens(text, subject) for text, subject in texts])
    return F.binary_cross_entropy_with_logits(logits, labels.float())
