"""Prepares a run before its first step: statistics, continuations, hidden states, systems.

Knows no losses and no optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.errors import HparamsError, NoTrunkError
from easyedit_mend_parallel.forward.cached_trunk import CachedTrunk
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.text_batch import text_ids
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.archive import load_archive
from easyedit_mend_parallel.method.growing_system import SystemOptions
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.method.least_squares import Aggregate
from easyedit_mend_parallel.method.preserved_cache import gathered_once
from easyedit_mend_parallel.method.preserved_text import lines_of
from easyedit_mend_parallel.training.continuations import Continuations, to_continue
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.objective import Measuring
from easyedit_mend_parallel.training.processes import Processes
from easyedit_mend_parallel.training.sampling import Sample
from easyedit_mend_parallel.training.screen import Screen
from easyedit_mend_parallel.training.solving import StepSolver
from easyedit_mend_parallel.weights.target import Target

log = logging.getLogger(__name__)


def gather_statistics(
    network: Hypernetwork,
    texts: Texts,
    data: Data,
    hparams: MENDParallelTrainingHparams,
    processes: Processes,
    screen: Screen,
) -> None:
    """Add the token rows of the first `statistics_examples` edits to the network's statistics.

    Each process captures its share; all processes add the samples of all, before the first step.
    """
    size = hparams.batch_size
    together = size * processes.count
    wanted = min(hparams.statistics_examples, len(data.train))
    examples = data.train[: max(1, wanted // together) * together]
    own = examples[processes.index :: processes.count]
    for start in screen.track(range(0, len(own), size), "statistics of the token rows"):
        part = own[start : start + size]
        requests = [Text(e.request.prompt, e.request.target_text) for e in part]
        rows, _ = capture(texts.model, network.targets, texts.batch(requests))
        network.observe(rows, processes.samples)


def draw_continuations(
    texts: Texts,
    samples: Iterable[Sample],
    options: Aggregate | None,
    hparams: MENDParallelTrainingHparams,
    processes: Processes,
    screen: Screen,
) -> dict[Text, Text]:
    """{text: the text with a continuation}, for the texts of `samples` that get one: those that
    test an edit if there are `continuation_positions`, and requests if systems have rows of what
    follows an answer (`options`, those of `solve_options`). Raises what `Continuations` raises."""
    of_requests = options is not None and options.continuation_weight > 0
    wanted = {
        text: greedy
        for sample in samples
        for text, greedy in to_continue(sample.example)
        if (of_requests and greedy)
        or (hparams.continuation_positions and text.prompt in sample.prompts)
    }
    if not wanted:
        return {}
    drawn = Continuations(texts, seed=hparams.seed, folder=_folder(hparams, processes))
    screen.count(drawn.draw(wanted), len(wanted), "continuations of the answers")
    return drawn.of


def keep_states(
    texts: Texts,
    targets: Sequence[Target],
    samples: Iterable[Sample],
    continued: Mapping[Text, Text],
    hparams: MENDParallelTrainingHparams,
    processes: Processes,
    screen: Screen,
) -> None:
    """Give `texts` a trunk, and cache the hidden states of the texts of `samples`.

    For a model without a trunk every step runs the whole model, and a warning says so. Raises
    TrunkError for a `trunk_folder` of other weights or another tokenizer.
    """
    memory, disk = hparams.trunk_bytes
    if not memory + disk:
        return
    found = _texts_of(samples, continued)
    try:
        trunk = CachedTrunk(
            texts.model,
            targets,
            texts.tokenizer,
            memory_limit=memory,
            disk_limit=disk,
            folder=_folder(hparams, processes),
        )
        texts.trunk = trunk
        texts.batch(found[:1])
    except NoTrunkError as error:
        log.warning("every step runs the whole model: %s", error)
        texts.trunk = None
        return
    screen.count(texts.keep(found), len(found), "hidden states below the targets")
    trunk.kept.save()


def measuring(hparams: MENDParallelTrainingHparams, continued: Mapping[Text, Text]) -> Measuring:
    """How the texts of a step are measured; `continued` are they with their continuations."""
    return Measuring(
        hparams.cedit,
        hparams.cloc,
        hparams.locality_positions,
        hparams.continuation_positions,
        continued if hparams.continuation_positions else {},
    )


def make_solver(
    texts: Texts,
    targets: Sequence[Target],
    continued: Mapping[Text, Text],
    options: Aggregate | None,
    hparams: MENDParallelTrainingHparams,
) -> StepSolver | None:
    """What solves the edits of a step together; None without `options`, those of `solve_options`.

    Gathers the targets' inputs for preserved text, or reads them from the cache. `continued` has
    the requests' texts with their continuations.
    """
    if options is None or options.preserved_text is None:
        return None
    ids = text_ids(texts.tokenizer, options.preserved_text)
    system = SystemOptions(
        options.ridge,
        options.label_weight,
        options.preserved_text_weight,
        0,
        continuation_weight=options.continuation_weight,
        solve_single=options.solve_single,
    )
    preserved = gathered_once(texts.model, targets, ids, hparams.batch_bytes)
    return StepSolver(texts, targets, system, preserved, continued)


def solve_options(hparams: MENDParallelTrainingHparams) -> Aggregate | None:
    """How the edits of a step are solved together: as the hyperparameters say, and otherwise the
    archive that training starts from. None if `solved_edits` is 1. Raises HparamsError for options
    that are not those of a least-squares system.
    """
    if hparams.solved_edits == 1:
        return None
    kept = {} if hparams.archive is None else load_archive(hparams.archive).header
    options = hparams.aggregation(kept.get("aggregate", {}))
    if options.how != "least_squares" or not options.preserved_text:
        raise HparamsError(
            f"solved_edits is {hparams.solved_edits}, and the edits of a step are solved together "
            "by least squares with preserved text: leave out `aggregate`, and `preserved_text` in "
            "aggregate_options, or set solved_edits: 1"
        )
    return options


def options_to_keep(options: Aggregate | None) -> dict[str, Any]:
    """What a run's archive says of how its edits are solved: {"aggregate": options}, so that they
    are solved in the same way when it edits. Empty without `options`, those of `solve_options`."""
    if options is None:
        return {}
    if options.preserved_text == lines_of(None):
        options = replace(options, preserved_text=None)
    return {"aggregate": asdict(options)}


def _folder(hparams: MENDParallelTrainingHparams, processes: Processes) -> Path | None:
    """This process's folder for results that later runs reuse."""
    if hparams.trunk_folder is None:
        return None
    return Path(hparams.trunk_folder) / f"process-{processes.index}"


def _texts_of(samples: Iterable[Sample], continued: Mapping[Text, Text]) -> list[Text]:
    """The texts of the samples, without repeats."""
    found: dict[Text, None] = {}
    for sample in samples:
        request = sample.example.request
        tried = [Text(prompt, request.target_after(prompt)) for prompt in sample.prompts]
        asked = Text(request.prompt, request.target_text)
        found |= dict.fromkeys((asked, continued.get(asked, asked)))
        found |= dict.fromkeys(continued.get(text, text) for text in tried)
        found |= dict.fromkeys(Text(one.prompt, one.target) for one in sample.locality)
    return list(found)
