"""Sets a scope's thresholds on validation facts, for a stated rate of false firing.

Knows the logits of texts for requests. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.errors import TrainingError
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.training.scope_training import States
from easyedit_mend_parallel.weights.scope import Scope, Thresholds, stands_in, words_of

FALSE_FIRING = 0.005
"""Maximum share of neighbours' texts in which a request that names its subject fires, though the
text lacks it; if no subject has several facts, also of those that contain it."""
FALSE_FIRING_WITHOUT_SUBJECT = 0.05
"""The same for requests that name none."""
OTHER_RELATION = 0.4
"""Maximum share of pairs of a text and a request about another fact of the same subject in which
the request fires, if the text's own fact has no edit."""
LEAST = 0.005
"""A threshold is at least the one that this share of rephrases needs."""


@torch.no_grad()
def choose_thresholds(
    scope: Scope,
    validation: Sequence[Example],
    others: Sequence[str],
    unrelated: Sequence[str],
    states: States,
) -> Scope:
    """`scope` with thresholds that keep the rates above on `validation`.

    The memory has all requests of `validation` and, to be as full as one in use, the prompts
    `others`. Raises TrainingError if no example has a neighbour or an unrelated text.
    """
    by_prompt = {example.request.prompt: example for example in validation}
    examples = list(by_prompt.values())
    prompts = [*by_prompt, *(prompt for prompt in others if prompt not in by_prompt)]
    negatives = [one.prompt for example in examples for one in example.neighbours]
    negatives = [*dict.fromkeys([*negatives, *unrelated])]
    if not negatives:
        raise TrainingError(
            "thresholds are set on texts that no edit must change: give validation facts with "
            "neighbours or unrelated texts"
        )
    subjects = [words_of(example.subject or "") for example in examples]
    wrong = logits_of(scope, prompts, negatives, states)
    # Prompts without a subject serve only as competitors.
    named = [*subjects, *((),) * (len(prompts) - len(subjects))]
    standing = _standing(negatives, named)
    known = torch.tensor([bool(subject) for subject in named])
    rephrases = [(q, n) for n, example in enumerate(examples) for q in example.rephrases]
    least, least_asked = (
        _least(logits_of(scope, prompts, [q for q, _ in rephrases], states, named), rephrases)
        for named in (False, True)
    )
    lowest = torch.full_like(wrong, -torch.inf)
    # A text in which a request's subject stands asks something else of it.
    subject = _other_relations(scope, examples, states)
    if subject is None:
        asked = logits_of(scope, prompts, negatives, states, named=True)
        subject = _threshold(torch.where(standing, asked, lowest), FALSE_FIRING, least_asked)
    subject = max(subject, least_asked)
    alias = _threshold(torch.where(~standing & known, wrong, lowest), FALSE_FIRING, least)
    plain = _threshold(wrong, FALSE_FIRING_WITHOUT_SUBJECT, least)
    return replace(scope, thresholds=Thresholds(subject, alias, plain))


@torch.no_grad()
def logits_of(
    scope: Scope,
    prompts: Sequence[str],
    texts: Sequence[str],
    states: States,
    named: bool = False,
) -> Tensor:
    """(texts, prompts): the logit of each prompt's request for each text; with `named` that of the
    relation head, if there is one."""
    found = [scope.keys(states[prompt]) for prompt in prompts]
    width = max(len(weights) for _, weights in found)
    keys = torch.stack([F.pad(k, (0, 0, 0, width - len(k))) for k, _ in found])
    weights = torch.stack([F.pad(w, (0, width - len(w))) for _, w in found])
    flat = keys.flatten(0, 1).T
    rows = []
    for text in texts:
        encoded = scope.encoded(states[text][1:] if scope.skip_first else states[text])
        if named and scope.relation is not None:
            rows.append(scope.relation_logits(encoded, keys[:, 0]).amax(0))
            continue
        best = scope.cosines(encoded, flat.T).amax(0).view(len(prompts), width)
        rows.append(scope.logits(best, weights))
    return torch.stack(rows)


def _least(logits: Tensor, rephrases: Sequence[tuple[str, int]]) -> float:
    """The logit that all but a share of `LEAST` of the rephrases have for their own request."""
    if not rephrases:
        return 0.0
    own = logits[torch.arange(len(rephrases)), torch.tensor([n for _, n in rephrases])]
    return float(own.quantile(LEAST))


def _other_relations(scope: Scope, examples: Sequence[Example], states: States) -> float | None:
    """The threshold above which texts about a subject seldom fire the subject's other facts; None
    if no subject has several facts."""
    texts, prompts, pairs = [], [], []
    for number, one in enumerate(examples):
        for other in examples[number + 1 :]:
            if one.subject and one.subject == other.subject and one.relation != other.relation:
                for request, text in ((one, other), (other, one)):
                    pairs.append((text.request.prompt, request.request.prompt))
    if not pairs:
        return None
    texts = list(dict.fromkeys(text for text, _ in pairs))
    prompts = list(dict.fromkeys(prompt for _, prompt in pairs))
    logits = logits_of(scope, prompts, texts, states, named=True)
    values = [logits[texts.index(text), prompts.index(prompt)] for text, prompt in pairs]
    return float(torch.stack(values).quantile(1 - OTHER_RELATION))


def _threshold(logits: Tensor, rate: float, least: float) -> float:
    """The lowest threshold, at least `least`, that at most a share `rate` of the texts exceeds."""
    most = logits.amax(1).clamp(min=-1e4)
    return max(least, float(most.quantile(1 - rate, interpolation="higher")))


def _standing(texts: Sequence[str], subjects: Sequence[tuple[str, ...]]) -> Tensor:
    """(texts, subjects): whether each text contains each subject."""
    words = [words_of(text) for text in texts]
    return torch.tensor(
        [[bool(subject) and stands_in(text, subject) for subject in subjects] for text in words]
    )
