"""Trains EasyEdit's own MEND with EasyEdit's own EditTrainer, on the same facts, for a given time.

    PYTHONPATH=<clone of EasyEdit> python scripts/quality/easyedit_training.py FACTS OUT

Its hyperparameters are those of EasyEdit's MEND yaml files, at the rank of the quality run. The
archive that it leaves is measured by `choose.py`, as ours is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from easyedit_mend_parallel.demo.smollm2 import prepare
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams

CONFIG = Path(__file__).parent / "smollm2.yaml"
THEIRS = {
    "lr": 1e-6,
    "lr_lr": 1e-4,
    "edit_lr": 1e-4,
    "batch_size": 1,
    "accumulate_bs": 10,
    "val_interval": 10**9,
    "model_class": "LlamaForCausalLM",  # what their loss takes for a decoder
    "early_stop_key": "loss/total_edit_val",
}
"""What the MEND files in EasyEdit's hparams/TRAINING say."""


class TimeIsUp(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="train_more_zsre.json of facts.py")
    parser.add_argument("out", type=Path, help="the archive to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="of one core")
    options = parser.parse_args()
    from easyeditor import EditTrainer, ZsreDataset

    config = their_config()
    facts = ZsreDataset(str(options.data), config=config)

    class Timed(EditTrainer):
        def train_step(self, batch):  # type: ignore[no-untyped-def]
            if time.process_time() > self.ends:
                raise TimeIsUp
            self.made = getattr(self, "made", 0) + 1
            if self.made % 250 == 0:
                print(f"step {self.made}", file=sys.stderr, flush=True)
            return super().train_step(batch)

    torch.manual_seed(config.seed)
    trainer = Timed(config=config, train_set=facts, val_set=facts)
    started = time.process_time()
    trainer.ends = started + 60 * options.minutes
    with suppress(TimeIsUp):
        trainer.run()
    state = {k: v for k, v in trainer.model.state_dict().items() if k != "model_config"}
    torch.save({"model": state, "opt": None}, options.out)
    print(json.dumps({"steps": trainer.made, "minutes": (time.process_time() - started) / 60}))


def their_config(**options: Any) -> Any:
    """EasyEdit's own hyperparameters for SmolLM2 on a CPU, with `options` in them."""
    from easyeditor import MENDTrainingHparams

    folder = str(prepare())
    fields = MENDParallelTrainingHparams.from_hparams(CONFIG).to_dict() | THEIRS | options
    known = MENDTrainingHparams.__dataclass_fields__
    config = MENDTrainingHparams(**{name: fields[name] for name in fields if name in known})
    config.model_name = config.tokenizer_name = folder
    config.alg, config.model_parallel, config.device, config.max_iters = "MEND", False, "cpu", 10**7
    return config


if __name__ == "__main__":
    main()
