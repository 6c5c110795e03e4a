"""One of several training processes: makes a run of the toys and leaves its network in a file.

Started by tests/test_trainer_processes.py through torchrun, as `worker.py FOLDER OPTIONS`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file

from trained.runs import state, trainer


def main(folder: Path, options: dict[str, object]) -> None:
    warnings.simplefilter("ignore")
    accelerator = Accelerator(cpu=True)
    run = trainer(folder / "run", accelerator=accelerator, **options)
    run.run()
    save_file(state(run), folder / f"process-{accelerator.process_index}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
