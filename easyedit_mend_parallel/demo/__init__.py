"""The demo: a real model with its blocks in different places, edited through EasyEdit.

    python -m easyedit_mend_parallel.demo

Knows EasyEdit only as a user does.
"""

from __future__ import annotations

from pathlib import Path


def demo_archive() -> Path:
    """The small trained archive that ships with the package, for SmolLM2-135M-Instruct."""
    return Path(__file__).with_name("smollm2-135m-instruct.safetensors")


def demo_hparams() -> Path:
    """The EasyEdit-style yaml that the demo edits with: in a wheel beside this file, in a clone
    among the other hyperparameter files."""
    name = "smollm2-135m.yaml"
    beside = Path(__file__).with_name(name)
    return (
        beside if beside.is_file() else Path(__file__).parents[2] / "hparams/MEND_PARALLEL" / name
    )
