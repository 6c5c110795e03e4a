"""The demo: edits a real model, with its blocks in different places, through EasyEdit.

    python -m easyedit_mend_parallel.demo

Knows EasyEdit only as a user does.
"""

from __future__ import annotations

from pathlib import Path


def demo_archive(scoped: bool = False) -> Path:
    """The small trained archive that ships with the package, for SmolLM2-135M-Instruct.

    `scoped` gives the one for `apply: scoped`. Its hypernetwork was trained without neighbours,
    which a scope preserves: more rephrases succeed, and written into weights its edits change
    neighbours.
    """
    name = "smollm2-135m-instruct-scoped" if scoped else "smollm2-135m-instruct"
    return Path(__file__).with_name(f"{name}.safetensors")


def demo_hparams() -> Path:
    """The demo's EasyEdit-style yaml file: beside this file, or in `hparams/` in a clone."""
    name = "smollm2-135m.yaml"
    beside = Path(__file__).with_name(name)
    return (
        beside if beside.is_file() else Path(__file__).parents[2] / "hparams/MEND_PARALLEL" / name
    )
