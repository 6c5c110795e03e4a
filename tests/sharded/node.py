"""One process of a model that is split over two nodes, of which one can be killed in the middle.

    torchrun --nnodes 2 ... tests/sharded/node.py FOLDER [KILLED]

The first edit goes into the journal in FOLDER, or comes from it. With KILLED, the place of `PLACES`
where the second node's process is killed in the next edit, the other one has to notice. Ends with 0
if what is claimed holds. Started by tests/test_several_nodes.py.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers
from torch import distributed as dist

LIMIT = datetime.timedelta(seconds=20)
"""The group's timeout: a process that waits in vain for the other fails after this."""
NOTICED = 3
"""The exit code of a process that noticed that the other is gone, and is as it was before."""


def main(folder: Path, killed: str | None) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", timeout=LIMIT)
    from sharded.models import assert_equal_edits, editors
    from toys import OBSERVED, REQUEST, weights

    from easyedit_mend_parallel import Journal

    sharded, plain = editors()
    journal = Journal(folder).apply_to(sharded.model)
    if not journal.entries:
        journal.add(sharded.edit(REQUEST))
    names = [target.name for target in plain.targets]
    base = weights(plain.model, names)
    plain.edit(REQUEST)
    assert_equal_edits(sharded.model, plain.model, base)
    if killed is not None:
        survive(killed, sharded, journal)
    second = sharded.edit(OBSERVED[0])
    second.rollback()
    assert_equal_edits(sharded.model, plain.model, base)
    dist.barrier()
    dist.destroy_process_group()


def survive(killed: str, sharded: Any, journal: Any) -> None:
    """Edit until one process is killed; the other has to be as it was, and ends with `NOTICED`."""
    from sharded.models import assert_shards, shards
    from toys import OBSERVED

    before = shards(sharded.model)
    if dist.get_rank() == 1:
        setattr(*PLACES[killed](), die)
    with suppress(Exception):  # the group's own error, or this package's
        journal.add(sharded.edit(OBSERVED[0]))
        raise SystemExit("the other process is gone, and nobody noticed")
    assert_shards(sharded.model, before)
    print("noticed, and nothing changed here", flush=True)
    os._exit(NOTICED)  # what is left of the group cannot be taken down


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _forward() -> tuple[Any, str]:
    from transformers.models.llama.modeling_llama import LlamaMLP

    return LlamaMLP, "forward"


def _write() -> tuple[Any, str]:
    from easyedit_mend_parallel.weights.stores.resident import ResidentStaged

    return ResidentStaged, "commit"


PLACES: dict[str, Callable[[], tuple[Any, str]]] = {"forward": _forward, "write": _write}
"""{name: what the process of the second node is about to call when it is killed}"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
