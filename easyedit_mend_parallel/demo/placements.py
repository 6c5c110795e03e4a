"""Makes the demo's device maps for SmolLM2, and lists those that this machine can run.

Knows no model but SmolLM2, and nothing of editing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from easyedit_mend_parallel.demo.smollm2 import DemoError

N_BLOCKS = 30
"""SmolLM2-135M has 30 blocks; the last three hold the targets."""


@dataclass(frozen=True)
class Spread:
    """One way to spread the model: a description, and the arguments of `from_pretrained`."""

    says: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    device: int | str = "cpu"
    """The device to which EasyEdit sends prompts."""


NAMES = ("two-gpus", "gpu+cpu", "cpu+disk", "all-disk", "simulated")


def spread(name: str, offload_folder: str) -> Spread:
    """The spread `name`, one of `NAMES`. Raises DemoError if this machine lacks a GPU for it."""
    if name != "simulated" and name not in choices():
        raise DemoError(
            f"{name} needs more GPUs than the {torch.cuda.device_count()} that torch sees here; "
            f"this machine can run {', '.join(choices())} and simulated"
        )
    if name == "two-gpus":
        return Spread("two GPUs, split inside the edited blocks", _map(0, 28, 1), device=0)
    if name == "simulated":
        return Spread(
            "two simulated accelerators, split inside the edited blocks",
            _map("sim:0", 28, "sim:1"),
            device="sim:0",
        )
    if name == "gpu+cpu":
        return Spread(
            "the lower half offloaded to RAM, the rest on the GPU",
            {**_map("cpu", 15, 0), "offload_folder": offload_folder},
            device=0,
        )
    if name == "all-disk":
        return Spread(
            "all blocks on disk, including the edited ones",
            {**_map("disk", N_BLOCKS, "cpu"), "offload_folder": offload_folder},
        )
    return Spread(
        "the lower half on disk, the rest in memory",
        {**_map("disk", 15, "cpu"), "offload_folder": offload_folder},
    )


def choices() -> list[str]:
    """The names that this machine can run, the best first."""
    gpus = torch.cuda.device_count()
    return ["two-gpus"] * (gpus > 1) + ["gpu+cpu"] * (gpus > 0) + ["cpu+disk", "all-disk"]


def _map(lower: int | str, cut: int, upper: int | str) -> dict[str, Any]:
    """Blocks below `cut` on `lower`, the others on `upper`; embeddings where they can be read.

    Head and embeddings share one weight, so both have the same place.
    """
    ends = upper if lower in ("cpu", "disk") else lower
    device_map = {"model.embed_tokens": ends, "lm_head": ends, "model.rotary_emb": ends}
    device_map |= {
        f"model.layers.{block}": lower if block < cut else upper for block in range(N_BLOCKS)
    }
    return {"device_map": {**device_map, "model.norm": upper}}
