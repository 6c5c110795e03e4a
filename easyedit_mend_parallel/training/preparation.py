"""What is done once before the first step: hidden states of all texts, statistics of token rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from easyedit_mend_parallel.errors import NoTrunkError
from easyedit_mend_parallel.forward.capture import capture
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.forward.trunk import Trunk
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.training.length_filter import Data
from easyedit_mend_parallel.training.processes import Processes
from easyedit_mend_parallel.training.screen import Screen
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
    """Show the network the token rows of the first `statistics_examples` edits.

    Each process captures its share, and all take the samples of all before any step uses them.
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


def keep_states(
    texts: Texts,
    targets: Sequence[Target],
    data: Data,
    hparams: MENDParallelTrainingHparams,
    processes: Processes,
    screen: Screen,
) -> None:
    """Give `texts` a trunk and pass the training texts through it, where states may be kept.

    A model that has none is run whole in every step, and a warning says so. Raises TrunkError
    for a `trunk_folder` of other weights or another tokenizer.
    """
    memory, disk = hparams.trunk_bytes
    if not memory + disk:
        return
    folder = None
    if hparams.trunk_folder is not None:
        folder = Path(hparams.trunk_folder) / f"process-{processes.index}"
    try:
        trunk = Trunk(
            texts.model,
            targets,
            texts.tokenizer,
            memory_limit=memory,
            disk_limit=disk,
            folder=folder,
        )
        texts.trunk = trunk
        first = data.train[0].request
        texts.batch([Text(first.prompt, first.target_text)])
    except NoTrunkError as error:
        log.warning("every step runs the whole model: %s", error)
        texts.trunk = None
        return
    found = _all_texts(data)
    screen.count(texts.keep(found), len(found), "hidden states below the targets")
    trunk.kept.save()


def _all_texts(data: Data) -> list[Text]:
    """Every text that a step may draw, once."""
    found = dict.fromkeys(Text(text) for text in data.unrelated)
    for example in data.train:
        prompts = (example.request.prompt, *example.rephrases)
        locality = (*example.neighbours, *example.unrelated)
        found |= dict.fromkeys(Text(prompt, example.request.target_text) for prompt in prompts)
        found |= dict.fromkeys(Text(one.prompt, one.target) for one in locality)
    return list(found)
