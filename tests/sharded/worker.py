"""One process of a split model: runs and records the claims. Ends with an error where one fails.

Started by tests/test_sharded.py. By hand, all of them or those that are named (those of HSDP with
four processes, those of training with SHARDED_CLAIMS=training, those of ZeRO-3 with
SHARDED_CLAIMS=partitioned or partitioned_training and DS_ACCELERATOR=cpu):

    PYTHONPATH=tests SHARDED_CHECKPOINTS=/tmp OMP_NUM_THREADS=1 python -m torch.distributed.run \
        --standalone --nproc-per-node 2 tests/sharded/worker.py only_rows_travel
"""

from __future__ import annotations

import datetime
import importlib
import os
import sys
import time
import traceback
import warnings

import transformers
from inner_runs import FAILED, PASSED, SKIPPED, STARTED, record
from torch import distributed as dist

COLLECTIVE_LIMIT = datetime.timedelta(seconds=40)
"""A process that waits in vain for the other fails after this."""
KINDS = {2: "claims failures keeping scoped fully", 4: "copies"}
"""{number of processes: modules of claims}. SHARDED_CLAIMS names others: `training`, and
those of ZeRO-3."""


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", timeout=COLLECTIVE_LIMIT)
    kinds = os.environ.get("SHARDED_CLAIMS") or KINDS[dist.get_world_size()]
    modules = [importlib.import_module(f"sharded.{kind}") for kind in kinds.split()]
    chosen = [
        claim
        for module in modules
        for claim in module.CLAIMS
        if not names or claim.__name__ in names
    ]
    for number, claim in enumerate(chosen):
        started = time.perf_counter()
        record(claim.__name__, STARTED)
        try:
            claim()
        except BaseException:
            found = f"rank {dist.get_rank()}:\n{traceback.format_exc()}"
            record(claim.__name__, FAILED, found)
            print(f"{claim.__name__} fails, {found}")
            for later in chosen[number + 1 :]:
                record(later.__name__, SKIPPED, f"{claim.__name__} failed before it")
            sys.exit(1)  # the other process may be anywhere now
        record(claim.__name__, PASSED)
        if dist.get_rank() == 0:
            print(f"{time.perf_counter() - started:5.1f} s {claim.__name__}", flush=True)
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"{len(chosen)} claims hold on {dist.get_world_size()} processes")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
