"""What README.md and docs/ say is so: the pages build without a warning, every hyperparameter has a
meaning written, and every code block runs, or is checked where its page says why it is not run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml
from documented.blocks import NOT_RUN, ROOT, Block, blocks, pages
from documented.checked_python import Reader
from documented.checked_shell import PATH, problems
from documented.toy_project import least

import easyedit_mend_parallel
from easyedit_mend_parallel import MENDParallelTrainingHparams
from easyedit_mend_parallel.hparams.groups import EVERYONE, NOBODY, UNREAD

TIME_LIMIT_SECONDS = 300  # a hang fails; each page takes a fraction of this
EXAMPLES = sorted(ROOT.glob("docs/examples/*"))
"""The plugins that the pages build; here they can be imported, and are not installed."""
sys.path += [str(folder) for folder in (ROOT / "scripts", *EXAMPLES)]
from document_hparams import CLASSES, PAGE, groups, meanings, page  # noqa: E402

RUN = [path for path in pages() if any(block.is_run for block in blocks(path))]
"""Pages of which something is run."""


def test_the_pages_build_without_a_warning_and_list_every_public_name(tmp_path: Path) -> None:
    html = tmp_path / "html"
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "docs", str(html)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )

    assert built.returncode == 0, built.stderr
    for path in pages():
        if path.parts[0] == "docs" and "examples" not in path.parts:
            assert (html / path.relative_to("docs").with_suffix(".html")).is_file()
    listed = re.findall(
        r'id="easyedit_mend_parallel\.(?:\w+\.)*(\w+)"', (html / "api.html").read_text()
    )
    assert set(easyedit_mend_parallel.__all__) - set(listed) == set()


def test_every_hyperparameter_has_its_meaning_written_beside_it() -> None:
    for cls in CLASSES:
        written = meanings(cls)
        named = [field.name for fields in groups(cls).values() for field in fields]
        assert [name for name in named if not written.get(name)] == []
        assert set(named) >= set(vars(cls).get("__annotations__", {}))


def test_every_hyperparameter_has_one_group_and_few_are_for_everyone() -> None:
    names = [field.name for field in dataclasses.fields(MENDParallelTrainingHparams)]
    grouped = [*EVERYONE, *NOBODY, *UNREAD]

    assert len(EVERYONE) <= 6
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= set(names)


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_said_to_be_unread_is_read_nowhere(name: str) -> None:
    package = ROOT / "easyedit_mend_parallel"
    texts = [
        path.read_text("utf-8") for path in package.rglob("*.py") if path.parent.name != "hparams"
    ]
    read = re.compile(rf"""(hparams|fields|config|found|values)\.{name}\b|["\']{name}["\']""")

    assert not [text for text in texts if read.search(text)]


def test_the_configuration_page_is_what_the_fields_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "docs/configuration.md is out of date: run `make docs`"


@pytest.mark.parametrize("path", RUN, ids=str)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path) -> None:
    done = run(path, tmp_path)

    assert done.returncode == 0, done.stderr[-5000:]
    expected = [block.where for block in blocks(path) if block.is_run]
    assert [line for line in done.stderr.splitlines() if line in expected] == expected


@pytest.mark.parametrize("path", pages(), ids=str)
def test_what_is_not_run_of_a_page_names_what_exists(path: Path) -> None:
    assert wrong_in(path) == []


@pytest.mark.parametrize("path", pages(), ids=str)
def test_the_tests_that_a_page_names_are_there(path: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / path).read_text("utf-8"))

    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8") or not test, (file, test)


def wrong_in(path: Path) -> list[str]:
    """What is wrong in the blocks of a page that are not run."""
    reader, found = Reader(), []
    for block in blocks(path):
        if block.language == "python":
            problems_here = reader.problems(block)
            found += [] if block.is_run else problems_here
        elif block.language == "sh" and not block.is_run:
            found += problems(block)
        elif block.language in ("yaml", "toml", "json"):
            found += wrong_in_data(block)
    return found


def wrong_in_data(block: Block) -> list[str]:
    """yaml is taken for hyperparameters, which training has all of: read as a file is."""
    try:
        if block.language == "yaml":
            MENDParallelTrainingHparams.from_values(least() | yaml.safe_load(block.code))
        elif block.language == "toml":
            tomllib.loads(block.code)
        else:
            json.loads(block.code)
    except Exception as error:
        return [f"{block.where}: {error}"]
    return []


def run(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in `folder`, where the example plugins can be imported, and EasyEdit
    is EASYEDIT_HOME's if there is one."""
    roots = [ROOT, ROOT / "tests", *EXAMPLES]
    roots += [os.environ.get("EASYEDIT_HOME"), os.environ.get("PYTHONPATH")]
    environment = {name: value for name, value in os.environ.items() if name[:7] != "PYTEST_"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(str(root) for root in roots if root),
        "PATH": PATH,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "documented.run_page", str(path)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
    )


# These tests themselves


def written(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n",
        "```python\nimport a_module_that_nobody_has\n```\n",
        "```sh\nmend-parallel no-such-command\n```\n",
        "```python\nprint(1)\n```\n\n<!-- output -->\n```\n2\n```\n",
    ],
)
def test_a_block_that_fails_is_seen_and_named(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)

    done = run(path, tmp_path)

    assert done.returncode == 1
    last = blocks(path)[-1]
    assert re.search(rf"page\.md(:|\", line ){last.line}", done.stderr)


def test_blocks_share_names_and_hidden_ones_come_before(tmp_path: Path) -> None:
    text = "<!-- before: y = 1 -->\n```python\nx = y + 1\n```\n\n```python\nprint(x)\n```\n"
    path = written(tmp_path, text + "\n<!-- output -->\n```\n2\n```\n")

    assert run(path, tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("python\nx = (", "was never closed"),
        ("python\nimport a_module_that_nobody_has", "no module a_module_that_nobody_has"),
        ("python\nfrom easyedit_mend_parallel import Mendparallel", "has no Mendparallel"),
        (
            "python\nfrom easyedit_mend_parallel import MendParallel\n"
            "MendParallel(1, 2, 3).edit({}, loses_after=True)",
            "has no argument loses_after",
        ),
        (
            "python\nfrom easyedit_mend_parallel import MENDParallelHyperParams as H\n"
            "hparams = H.from_hparams('x')\nhparams.overlaylimit = 0",
            "hparams has no overlaylimit",
        ),
        ("sh\nmend-paralel plugins", "no command mend-paralel"),
        ("sh\nmend-parallel pluggins", "no command pluggins"),
        ("sh\nmend-parallel plugins --jason", "no option --jason"),
        ("sh\nmake tests", "no target tests"),
        ("sh\npython scripts/survey.py", "no script scripts/survey.py"),
        ("sh\npython -m easyedit_mend_parallel.demo --place x", "no option --place"),
        ("yaml\nmodel_kwarg: {}", "unknown key 'model_kwarg'"),
        ("toml\n[a", "Expected ']'"),
    ],
)
def test_a_marked_block_that_names_what_does_not_exist_is_seen(
    code: str, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f"<!-- long -->\n```{code}\n```\n")

    found = wrong_in(path)

    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize("text", ["<!-- lng -->\n```sh\nls\n```", "```pyton\nx\n```"])
def test_a_mark_or_a_language_that_no_test_knows_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no mark|no test knows"):
        blocks(written(tmp_path, text))


@pytest.mark.parametrize("mark", NOT_RUN)
def test_a_mark_stands_only_before_its_own_block(mark: str, tmp_path: Path) -> None:
    found = blocks(written(tmp_path, f"<!-- {mark} -->\n```sh\nx\n```\n\n```sh\ny\n```\n"))

    assert [block.is_run for block in found] == [False, True]
