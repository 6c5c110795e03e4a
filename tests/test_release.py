"""What is released is whole: the wheel comes out of the source archive, both have what they need
and no tests, and the wheel works where neither EasyEdit nor a clone is."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from plan_toys import Toy

ROOT = Path(__file__).parent.parent
NOT_THERE = ("easyeditor", "easyedit_mend_parallel", "_easyedit_mend_parallel", "__editable__")
"""What the bare environment lacks of the tests' own."""
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def wheel(released: Path) -> Path:
    (found,) = released.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and its dependencies, without EasyEdit."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv/bin/python"
    install = ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    dependencies = home / "dependencies"
    dependencies.mkdir()
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for one in Path(path).iterdir():
            if not one.name.startswith(NOT_THERE) and one.suffix != ".pth":
                (dependencies / one.name).symlink_to(one)
    (packages,) = (home / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return python.parent


def run(bare: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    return subprocess.run(
        [str(bare / command[0]), *command[1:]],
        cwd=bare,
        env=environment | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_has_the_package_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "cli/check.py",
        "demo/smollm2-135m-instruct.safetensors",
        "demo/smollm2-135m-instruct-scoped.safetensors",
        "demo/capitals.jsonl",
        "demo/smollm2-135m.yaml",
    ):
        assert f"easyedit_mend_parallel/{name}" in names
    tops = {name.partition("/")[0] for name in names}
    assert len(tops) == 2
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(archive.read(about).decode())
    assert VERSION is not None
    assert (metadata["Name"], metadata["Version"]) == ("easyedit-mend-parallel", VERSION[1])
    assert "easyeditor" not in " ".join(metadata.get_all("Requires-Dist", []))
    points = configparser.ConfigParser()
    points.read_string(archive.read(about.replace("METADATA", "entry_points.txt")).decode())
    assert points["console_scripts"]["mend-parallel"] == "easyedit_mend_parallel.cli:main"
    assert points["easyedit"]["mend_parallel"] == "easyedit_mend_parallel.easyedit.method"


def test_the_source_archive_has_what_the_wheel_is_built_from_and_no_more(released: Path) -> None:
    (source,) = released.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.partition("/")[0] for name in names} == {
        ".gitignore",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "easyedit_mend_parallel",
        "hparams",
        "pyproject.toml",
    }
    assert "hparams/MEND_PARALLEL/llama-7b.yaml" in names


def test_the_installed_package_is_the_wheel_and_easyedit_is_absent(bare: Path) -> None:
    code = (
        "import importlib.util as util, easyedit_mend_parallel as package\n"
        "from easyedit_mend_parallel.demo import demo_archive, demo_hparams\n"
        "from easyedit_mend_parallel import MENDParallelHyperParams, load_archive\n"
        "assert util.find_spec('easyeditor') is None\n"
        "load_archive(demo_archive())\n"
        "MENDParallelHyperParams.from_hparams(demo_hparams())\n"
        "print(package.__version__, package.__file__)\n"
    )
    ran = run(bare, "python", "-c", code)
    assert ran.returncode == 0, ran.stderr[-3000:]
    version, file = ran.stdout.split()
    assert VERSION is not None
    assert version == VERSION[1]
    assert Path(file).is_relative_to(bare.parent)


def test_the_commands_run_without_easyedit(bare: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (["--help"], "check"),
        (["check", str(Toy(tmp_path).config())], "no problems"),
    ):
        ran = run(bare, "mend-parallel", *arguments)
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert says in ran.stdout


def test_what_needs_easyedit_says_so_where_it_is_absent(bare: Path) -> None:
    for arguments, says in (
        (["demo", "--placement", "cpu+disk"], "this demo needs easyeditor, which is not here"),
        (["plugins", "--methods"], "EasyEdit cannot be imported here"),
    ):
        ran = run(bare, "mend-parallel", *arguments)
        assert ran.returncode == 1
        assert says in ran.stdout + ran.stderr


def test_the_version_is_in_one_place() -> None:
    assert VERSION is not None
    for file in [*(ROOT / "easyedit_mend_parallel").rglob("*.py"), ROOT / "CITATION.cff"]:
        assert VERSION[1] not in file.read_text(encoding="utf-8"), file


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["title"].startswith("easyedit-mend-parallel")
    (paper,) = citation["references"]
    assert (paper["title"], paper["year"]) == ("Fast Model Editing at Scale", 2022)
    assert paper["authors"][0]["family-names"] == "Mitchell"
