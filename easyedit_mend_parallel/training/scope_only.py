"""Trains a scope and adds it to an archive: `mend-parallel train --scope-only`.

Computes the hidden states of the facts once, trains the encoder, and sets thresholds. Trains no
hypernetwork.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.archive import load_archive
from easyedit_mend_parallel.method.archive_additions import keep_scope
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.untrained_scope import scope_blocks
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.scope_thresholds import choose_thresholds
from easyedit_mend_parallel.training.scope_training import (
    ScopeOptions,
    SubjectTokens,
    train_scope,
)
from easyedit_mend_parallel.training.screen import Screen
from easyedit_mend_parallel.weights.gate import base_of
from easyedit_mend_parallel.weights.scope import Thresholds, starts_of, words_of
from easyedit_mend_parallel.weights.subject_words import word_of_each_token
from easyedit_mend_parallel.weights.target import find_targets

log = logging.getLogger(__name__)

ARCHIVE = "archive.safetensors"
COMPETITORS = 700
"""Number of training facts that are not trained on, but fill the memory when thresholds are set."""
FACTS = 3500
"""Maximum number of facts on which a scope is trained, since their states are in memory."""


LARGEST = 60_000.0
"""Bound of the states: the largest number of half precision, in which they are stored."""


@dataclass(frozen=True)
class TrainedScope:
    """The result of a run: the archive with the scope, and the scope's thresholds."""

    archive: Path
    thresholds: Thresholds


def train_scope_only(
    model: Any,
    tokenizer: Any,
    hparams: MENDParallelTrainingHparams,
    data: Data,
    folder: Path,
    *,
    steps: int | None = None,
    quiet: bool = False,
) -> TrainedScope:
    """Train a scope for `model` on the facts of `data`, and write the archive that `hparams` name,
    with the scope, to `folder`. Thresholds are set on the validation facts.

    Raises HparamsError without an archive, TrainingError without validation facts or if the folder
    already has an archive, and what `train_scope` and `choose_thresholds` raise.
    """
    out = folder / ARCHIVE
    if hparams.archive is None:
        raise HparamsError("archive is null: name the archive that the scope is to be added to")
    if out.exists():
        raise TrainingError(f"{folder} already has a run: name another folder")
    if not data.validation:
        raise TrainingError(
            "a scope's thresholds are set on validation facts: give some with --eval"
        )
    load_archive(hparams.archive, shapes_only=True)
    model = model.requires_grad_(False).eval()
    names, config = hparams.targets_and_network()
    targets = find_targets(model, names)
    name, blocks = scope_blocks(model, targets)
    options = ScopeOptions(seed=hparams.seed)
    if steps is not None:
        options = ScopeOptions(seed=hparams.seed, steps=steps)
    rng = random.Random(hparams.seed)
    drawn = rng.sample(data.train, len(data.train))
    apart = min(COMPETITORS, len(drawn) // 4)
    competitors = [example.request.prompt for example in drawn[:apart]]
    examples = drawn[apart : apart + FACTS]
    unrelated = list(data.validation_unrelated) + [
        one.prompt for example in data.validation for one in example.unrelated
    ]
    texts = _texts(examples, data.unrelated, data.validation, competitors, unrelated, options)
    screen = Screen(quiet)
    states: dict[str, Tensor] = {}
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with base_of(model), screen.counting("hidden states of the facts", len(texts)) as count:
        for number, found in block_states(model, name, blocks, ids):
            states[texts[number]] = found.clamp(-LARGEST, LARGEST).half()
            count(len(states))
    with screen.counting("training the scope", options.steps) as count:
        scope = train_scope(
            name,
            blocks,
            examples,
            data.unrelated,
            states,
            options,
            _subject_tokens(dict(zip(texts, ids, strict=True)), tokenizer.decode),
            lambda step, _loss: count(step),
        )
    scope = choose_thresholds(scope, data.validation, competitors, unrelated, states)
    network = Hypernetwork(targets, config)
    about: Mapping[str, Any] = {
        "targets": [asdict(target) for target in targets],
        "config": asdict(network.config),
        "special_tokens_in_labels": hparams.special_tokens_in_labels,
    }
    return TrainedScope(keep_scope(hparams.archive, scope, out, **about), scope.thresholds)


def _subject_tokens(
    ids: Mapping[str, Sequence[int]], read: Callable[[list[int]], str]
) -> SubjectTokens:
    """Which tokens of one of these texts belong to its subject."""

    @cache  # a text is drawn again and again
    def tokens(text: str, subject: str) -> Tensor:
        named = words_of(subject)
        starts = starts_of(words_of(read(list(ids[text]))), named)
        inside = {start + offset for start in starts for offset in range(len(named))}
        return torch.tensor([place in inside for place in word_of_each_token(ids[text], read)])

    return tokens


def _texts(
    examples: Sequence[Example],
    unrelated: Sequence[str],
    validation: Sequence[Example],
    competitors: Sequence[str],
    others: Sequence[str],
    options: ScopeOptions,
) -> list[str]:
    """Every text whose states a run needs, without repeats."""
    found = dict.fromkeys([*unrelated, *competitors, *others])
    for example in examples:
        found |= dict.fromkeys([example.request.prompt, *example.rephrases[: options.rephrases]])
    for example in validation:
        near = [one.prompt for one in example.neighbours]
        found |= dict.fromkeys([example.request.prompt, *example.rephrases, *near])
    return list(found)
