"""EasyEdit's EditTrainer on six cuts of a Llama over simulated accelerators: prints, for each cut,
how far its gradients are from one device's, and what a whole run left unmoved.

A program and no test: test_training.py runs it in a process of its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
if os.environ.get("EASYEDIT_MEND_PARALLEL_HOST") == "clone":
    sys.path.insert(0, os.environ["EASYEDIT_HOME"])

import simulated_accelerators  # noqa: E402

simulated_accelerators.load()

import placements  # noqa: E402
import test_training as cases  # noqa: E402  # imports EasyEdit, after this package
import torch  # noqa: E402


def gradients(trainer: Any, state: Any) -> dict[str, Any]:
    """Of EasyEdit's own training step, for one batch and a network far from the identity."""
    trainer.model.load_state_dict(state)
    trainer.edit_step(trainer.val_set.collate_gpt_fn(list(trainer.val_set)[:3]), training=True)
    parameters = dict(trainer.model.network.named_parameters())
    found = {name: parameter.grad.cpu() for name, parameter in parameters.items()}
    trainer.opt.zero_grad()
    return found


def hook_count(model: Any) -> int:
    return sum(hasattr(module, "_hf_hook") for module in model.modules())


def main() -> None:
    case = cases.Case(Path.cwd())
    logging.disable(logging.INFO)
    trained = cases.toys.toy_network(case.model, cases.toys.toy_tokenizer(side="left"))
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    expected = gradients(case.trainer(), state)
    report: dict[str, Any] = {}
    for cut in range(1, 7):
        _, blocks, head = placements.PLACEMENTS[f"llama-cut-at-{cut}"]
        model_kwargs = {"device_map": placements.device_map(case.model, blocks, head)}
        results = case.folder / f"results-{cut}"
        trainer = case.trainer(model_kwargs=model_kwargs, results_dir=str(results))
        hooks = hook_count(trainer.model.model)
        found = gradients(trainer, state)
        apart = max(
            float((found[name] - gradient).abs().max() / gradient.abs().max())
            for name, gradient in expected.items()
        )
        trainer = case.trainer(model_kwargs=model_kwargs, results_dir=str(results))
        before = cases.state_of(trainer.model)
        trainer.run()
        after = cases.state_of(trainer.model)
        report[str(cut)] = {
            "devices": sorted({str(p.device) for p in trainer.model.model.parameters()}),
            "gradient_apart": apart,
            "unmoved": [name for name in before if torch.equal(before[name], after[name])],
            "evaluated": (results / "results.json").is_file(),
            "hooks_kept": hook_count(trainer.model.model) == hooks > 0,
        }
    print()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
