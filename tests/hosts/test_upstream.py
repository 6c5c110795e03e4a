"""The change of docs/upstream.md, made to a copy of EasyEdit by scripts/upstream: afterwards
`alg_name: MEND_PARALLEL` works without an import of this package, MEND is what it was, and a clone
that the script does not know is refused and left as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from host_toys import ONE, TODAY, Toy, assert_same_edit, mend_fields, save_toy, write_yaml

from easyedit_mend_parallel import MendParallel, MENDParallelHyperParams, load_archive

pytestmark = pytest.mark.skipif(not TODAY, reason="the change is one to EasyEdit's repository")

HERE = Path(__file__).parent
SCRIPT = HERE.parent.parent / "scripts" / "upstream"
IDENTITY = {f"GIT_{who}_{what}": "tester" for who in ("AUTHOR", "COMMITTER") for what in ("NAME",)}
IDENTITY |= {f"GIT_{who}_EMAIL": "tester@example.org" for who in ("AUTHOR", "COMMITTER")}
EDITED = (
    "__init__.py",
    "editors/batch_editor.py",
    "trainer/BaseTrainer.py",
    "trainer/algs/local_nn.py",
    "trainer/utils.py",
    "trainer/training_hparams/mend_training_hparams.py",
    "util/alg_dict.py",
    "util/alg_train_dict.py",
    "util/hparams.py",
)
TOPICS = 6


def git(clone: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(clone), *words], env=os.environ | IDENTITY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def committed(clone: Path) -> Path:
    """The folder as a repository with one commit."""
    git(clone, "init", "--quiet", "--initial-branch=main")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "-m", "as it is")
    return clone


def run_script(clone: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(clone), *options],
        env=os.environ | IDENTITY,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of EasyEdit with the change made."""
    clone = tmp_path_factory.mktemp("easyedit")
    shutil.copytree(Path(os.environ["EASYEDIT_HOME"]) / "easyeditor", clone / "easyeditor")
    done = run_script(committed(clone))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("committed: ") == TOPICS
    return clone


class Running:
    """A script that runs with an EasyEdit, and what it prints last."""

    def __init__(self, home: Path, folder: Path, *words: str) -> None:
        own = str(HERE.parent.parent)  # wherever the other paths say that this package is
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(home), own])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def output(self) -> str:
        output, _ = self._process.communicate(timeout=300)
        assert self._process.returncode == 0, output[-5000:]
        return output.strip()

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output().splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Toy]:
    """A folder with a toy model and EasyEdit's own yaml files, as a user has them."""
    folder = tmp_path_factory.mktemp("case")
    path, toy = save_toy(folder)
    own = {"model_name": path, "inner_params": toy.names, "archive": str(toy.archive)}
    for name, values in {
        "edit": {"alg_name": "MEND_PARALLEL"},
        "batch": {"alg_name": "MEND_PARALLEL", "batch_size": 2},
        "mend": {"alg_name": "MEND", "model_class": "LlamaForCausalLM"},
        "other": {"alg_name": "MEND_PARALLEL"},
    }.items():
        fields = mend_fields(**own, **values)
        del fields["alg"]
        write_yaml(folder / f"{name}.yaml", **fields)
    training = mend_fields(
        **own | {"archive": None, "model_class": type(toy.model).__name__, "tokenizer_name": path},
        alg="MEND_PARALLEL",
        tokenizer_class="GPT2Tokenizer",
        final_eval=True,
        max_iters=4,
        val_interval=1000,
        lr=1e-3,
    )
    for name in ("alg_name", "lr_scale", "max_length"):
        training.pop(name)
    write_yaml(folder / "train.yaml", **training)
    record = {"src": ONE["prompts"][0], "alt": "Rome", "answers": ["Paris"], "rephrase": "is Paris"}
    record |= {"loc": "nq question: who wrote Hamlet", "loc_ans": "Shakespeare"}
    (folder / "zsre.json").write_text(json.dumps([record] * 6), encoding="utf-8")
    return folder, toy


@pytest.fixture(scope="module")
def running(changed: Path, case: tuple[Path, Toy]) -> dict[str, Running]:
    """All scripts, at once: most of their time is the import of EasyEdit."""
    home, folder = Path(os.environ["EASYEDIT_HOME"]), case[0]
    script = str(HERE / "without_plugins.py")
    return {
        "user": Running(changed, folder, str(HERE / "user_script.py")),
        "MEND before": Running(home, folder, script),
        "MEND after": Running(changed, folder, script),
        "tests": Running(changed, changed, "-m", "pytest", "tests", "-q", "-p", "no:cacheprovider"),
    }


@pytest.fixture(scope="module")
def found(running: dict[str, Running]) -> dict[str, Any]:
    return running["user"].report()


def test_a_script_that_imports_only_easyedit_edits_with_the_method_that_its_yaml_names(
    found: dict[str, Any], case: tuple[Path, Toy]
) -> None:
    folder, toy = case
    assert found["alg_name"] == "MEND_PARALLEL"
    assert found["executor"] == "easyedit_mend_parallel.easyedit.method.Executor"
    assert (found["metrics"], found["edited"]) == (1, sorted(toy.names))
    assert found["after_undo"] == found["after_a_measured_edit"] == []

    request = {"prompt": ONE["prompts"][0], "target_new": ONE["target_new"][0]}
    hparams = MENDParallelHyperParams.from_hparams(folder / "edit.yaml")
    hparams.on_worse = "ignore"
    toy.tokenizer.padding_side = "left"
    result = MendParallel(toy.model, toy.tokenizer, hparams).edit(request)
    with_easyedit = toys.toy_model("llama")
    with_easyedit.load_state_dict(torch.load(folder / "edited.pt"), strict=False)
    assert_same_edit(with_easyedit, toy.model, toy.before, toy.names)
    result.rollback()


def test_it_edits_in_batches(found: dict[str, Any], case: tuple[Path, Toy]) -> None:
    assert (found["batch_metrics"], found["batch_edited"]) == (2, sorted(case[1].names))
    assert found["after_batch_undo"] == []


def test_it_trains_and_ends_with_the_final_evaluation(
    found: dict[str, Any], case: tuple[Path, Toy]
) -> None:
    assert (found["alg"], found["steps"]) == ("MEND_PARALLEL", 3)
    assert found["results"]["loss/total_val"] > 0
    assert load_archive(case[0] / found["saved"]).has_optimizer


def test_what_easyedit_does_now_is_not_done_twice(
    found: dict[str, Any], case: tuple[Path, Toy]
) -> None:
    assert found["executors"] == 1
    assert found["wrapped"] is False
    assert not (case[0] / (found["saved"] + ".bk")).exists()


def test_mend_is_what_it_was_where_this_package_is_absent(running: dict[str, Running]) -> None:
    before, after = running["MEND before"].report(), running["MEND after"].report()

    assert before["hidden"]
    assert "MEND_PARALLEL" in before["refusal"]
    assert before["executor"].startswith("easyeditor.")
    assert after == before


def test_the_tests_that_the_change_brings_pass(running: dict[str, Running]) -> None:
    assert " passed" in running["tests"].output().splitlines()[-1]


def test_run_again_it_does_nothing(changed: Path) -> None:
    head = git(changed, "rev-parse", "HEAD")

    again = run_script(changed)

    assert (again.returncode, again.stderr) == (0, "")
    assert "has the whole change already" in again.stdout
    assert git(changed, "rev-parse", "HEAD") == head


def test_each_commit_is_small_and_touches_what_it_is_about(changed: Path) -> None:
    lines = git(changed, "log", "--format=%x00%s", "--numstat", "main..HEAD").split("\0")[1:]
    assert len(lines) == TOPICS
    for commit in lines:
        for line in commit.splitlines()[1:]:
            if line.strip() and not line.endswith(("util/plugins.py", "tests/test_plugins.py")):
                added, removed, _ = line.split("\t")
                assert int(added) + int(removed) <= 12
    assert git(changed, "status", "--porcelain", "--untracked-files=no") == ""


# Refusals


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A copy of the files that the change is about; not committed yet."""
    for name in EDITED:
        path = tmp_path / "clone" / "easyeditor" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(os.environ["EASYEDIT_HOME"]) / "easyeditor" / name, path)
    return tmp_path / "clone"


def without(name: str, text: str) -> Callable[[Path], None]:
    def take_out(clone: Path) -> None:
        path = clone / "easyeditor" / name
        old = path.read_text(encoding="utf-8")
        assert text in old
        path.write_text(old.replace(text, "another_name"), encoding="utf-8")

    return take_out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("editors/batch_editor.py", "BatchEditor"), "the class BatchEditor"),
        (without("util/alg_dict.py", "ALG_DICT"), "the assignment to ALG_DICT"),
        (without("util/alg_train_dict.py", "ALG_TRAIN_DICT"), "the assignment to ALG_TRAIN_DICT"),
        (without("util/hparams.py", "normalize_alg_name"), "the function normalize_alg_name"),
        (without("trainer/BaseTrainer.py", "torch.load"), "no call of torch.load"),
        (without("trainer/BaseTrainer.py", "save_state"), "the function save_state"),
        (without("trainer/training_hparams/mend_training_hparams.py", "'MEND'"), "of alg with"),
        (without("__init__.py", ".trainer"), "the import of everything in .trainer"),
        (lambda clone: (clone / "easyeditor/trainer/utils.py").unlink(), "utils.py is not in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_clone_that_it_does_not_know_is_refused_and_left_as_it_is(
    small: Path, change: Callable[[Path], None], said: str
) -> None:
    change(small)
    refuses(committed(small), said)


def test_work_that_is_not_committed_is_not_lost(small: Path) -> None:
    committed(small)
    path = small / "easyeditor" / "util" / "hparams.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# mine\n", encoding="utf-8")

    refuses(small, "would be overwritten")


def test_what_is_no_clone_is_refused(small: Path, tmp_path: Path) -> None:
    assert "no clone of EasyEdit" in run_script(tmp_path).stderr
    done = run_script(small)
    assert done.returncode == 1
    assert "git" in done.stderr


def test_a_branch_of_that_name_is_refused(small: Path) -> None:
    git(committed(small), "branch", "plugins")

    refuses(small, "there is a branch 'plugins' already")
    assert run_script(small, "--branch", "other").returncode == 0


def refuses(clone: Path, said: str) -> None:
    def state() -> tuple[str, ...]:
        files = {path: path.read_bytes() for path in sorted(clone.rglob("*.py"))}
        return (
            git(clone, "rev-parse", "HEAD"),
            git(clone, "branch", "--list"),
            git(clone, "status", "--porcelain"),
            str(files),
        )

    before = state()
    done = run_script(clone)

    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert said in done.stderr
    assert state() == before
