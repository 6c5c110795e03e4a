"""Makes a scope without training, from a model's hidden states of unrelated text.

Knows states and text, and no request or update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.errors import HparamsError, TargetError, TrunkError
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.forward.trunk import blocks_of
from easyedit_mend_parallel.method.preserved_text import lines_of
from easyedit_mend_parallel.weights.gate import base_of
from easyedit_mend_parallel.weights.scope import Scope, Thresholds
from easyedit_mend_parallel.weights.target import Target

LINES = 160
"""Maximum number of lines: the first half is used for directions, the rest for thresholds."""
ALIKE = 0.99
"""The quantile of the similarity of two unrelated lines from which thresholds are computed."""
DIMENSIONS = 256
"""Width of the projection, if the states have as many directions."""
SUBJECT, STATES, ALIAS = 0.0, 0.5, 0.75
"""Where the thresholds lie between the similarity of unrelated lines (0) and that of a text with
itself (1)."""


def scope_blocks(model: nn.Module, targets: Sequence[Target]) -> tuple[str, tuple[int, ...]]:
    """The list of blocks, and the indices of those whose inputs a scope reads: the lowest target's
    block, and one about a third of the way up to it.

    Raises TargetError if there is no block below the lowest target, or if the model has no such
    list of blocks.
    """
    try:
        name, lowest = blocks_of(model, targets)
    except TrunkError as error:
        raise TargetError(
            f"`apply: scoped` needs a decoder's blocks, below which no edit acts: {error}"
        ) from None
    if lowest == 0:
        raise TargetError(
            f"the lowest target lies in block 0 of {name}: nothing lies below it that could decide "
            "where an edit applies. Name weights of later blocks in inner_params, or set "
            "`apply: weight`"
        )
    return name, tuple(sorted({max(1, round(lowest * 0.37)), lowest}))


@torch.no_grad()
def untrained_scope(
    model: Any, tokenizer: Any, targets: Sequence[Target], lines: Sequence[str] | None = None
) -> Scope:
    """A scope that compares whitened hidden states, for any model and any archive.

    `lines` are unrelated text; None: the text that ships with this package.

    Its thresholds start from the similarity of two unrelated lines (`ALIKE`). If the text contains
    the request's subject, a higher similarity is enough. If the request names no subject, it must
    be half way from there to identical texts; if the text lacks the subject, three quarters.
    """
    name, blocks = scope_blocks(model, targets)
    chosen = (lines_of(None) if lines is None else lines)[:LINES]
    ids = [tokenizer(line)["input_ids"] for line in chosen]
    ids = [list(text) for text in dict.fromkeys(map(tuple, ids)) if len(text) > 1]
    if len(ids) < 2:
        raise HparamsError("a scope needs at least two lines of unrelated text: give more of them")
    with base_of(model):
        found = dict(block_states(model, name, blocks, ids))
    texts = [found[number].float() for number in range(len(ids))]
    half = max(1, len(texts) // 2)
    rows = torch.cat([text[1:] for text in texts[:half]])
    mean, std = rows.mean(0), rows.std(0) + 1e-6
    z = (rows - mean) / std
    size = min(DIMENSIONS, *z.shape)
    _, values, directions = torch.linalg.svd(z, full_matrices=False)
    kept = values[:size] / len(z) ** 0.5
    projection = directions[:size] / kept.clamp(min=1e-3 * float(kept[0]))[:, None]
    flat = torch.zeros(z.shape[1])
    scope = Scope(
        name, blocks, mean, std, projection, flat, torch.zeros(()), 1.0, 0.0, skip_first=True
    )
    scope = replace(scope, common=torch.cat([scope.encoded(text[1:]) for text in texts[:half]]))
    others = texts[half:] or texts
    highest = _alike([text for text in others if len(text) > 1], scope)

    def between(share: float) -> float:
        return highest + share * (1 - highest)

    return replace(scope, thresholds=Thresholds(between(SUBJECT), between(ALIAS), between(STATES)))


def _alike(texts: Sequence[torch.Tensor], scope: Scope) -> float:
    """The logit that only few texts have for an unrelated one."""
    encoded = [scope.encoded(text[1:]) for text in texts]
    logits = []
    for number, text in enumerate(texts):
        keys, weights = scope.keys(text)
        for other, tokens in enumerate(encoded):
            if other != number:
                best = (keys @ tokens.T).amax(1)
                logits.append(scope.logits(best, weights))
    return float(torch.stack(logits).quantile(ALIKE))
