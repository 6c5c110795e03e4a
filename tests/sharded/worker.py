"""One process of a tensor-parallel model: runs the claims, and ends with an error where one fails.

Started by tests/test_sharded.py. By hand, all of them or those that are named:

    PYTHONPATH=tests SHARDED_CHECKPOINTS=/tmp OMP_NUM_THREADS=1 python -m torch.distributed.run \
        --standalone --nproc-per-node 2 tests/sharded/worker.py only_rows_travel
"""

from __future__ import annotations

import datetime
import sys
import time
import traceback
import warnings

import transformers
from torch import distributed as dist

COLLECTIVE_LIMIT = datetime.timedelta(seconds=40)
"""A process that waits in vain for the other fails after this."""


def main(names: list[str]) -> None:
    from sharded import claims, failures, keeping

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", timeout=COLLECTIVE_LIMIT)
    held = 0
    for claim in (*claims.CLAIMS, *failures.CLAIMS, *keeping.CLAIMS):
        if names and claim.__name__ not in names:
            continue
        started = time.perf_counter()
        try:
            claim()
        except BaseException:
            print(f"rank {dist.get_rank()}: {claim.__name__} fails\n{traceback.format_exc()}")
            sys.exit(1)  # the other process may be anywhere now
        held += 1
        if dist.get_rank() == 0:
            print(f"{time.perf_counter() - started:5.1f} s {claim.__name__}", flush=True)
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"{held} claims hold on {dist.get_world_size()} processes")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
