"""The change to EasyEdit, by topic: one commit each, its message, and what it does to which file.

An edit takes a file's text and gives the new one; where its work is done already it gives the
text back. Knows EasyEdit's names, and holds none of its sentences.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from places import Missing, Source

FILES = Path(__file__).with_name("files")

PLUGINS = "easyeditor/util/plugins.py"
TESTS = "tests/test_plugins.py"


@dataclass(frozen=True)
class Topic:
    """One commit: `edits` are {path in the clone: edit of the file's text}."""

    message: str
    edits: dict[str, Callable[[Source], None]]
    adds: tuple[str, ...] = ()
    """Files of ours that are put into the clone."""


def find_plugins(source: Source) -> None:
    """Ask for plugins once the package is whole: after its last line."""
    if source.has("_find_plugins()"):
        return
    for module in ("editors", "trainer", "util"):
        source.the(
            ast.ImportFrom,
            f"the import of everything in .{module}",
            lambda node, module=module: node.module == module and node.level == 1,  # type: ignore[misc]
        )
    source.after(
        source.tree.body[-1],
        "from .util.plugins import find as _find_plugins",
        "",
        "_find_plugins()",
    )


def _say_where_more_come_from(name: str) -> Callable[[Source], None]:
    line = f"# find() in plugins.py adds the methods of installed packages to {name}."

    def edit(source: Source) -> None:
        registry = source.assigned(name)
        if not isinstance(registry.value, ast.Dict):
            raise Missing(f"{source.name}: {name} is no dictionary that is written out")
        if not source.has(line):
            source.before(registry, line)

    return edit


def batches_as_known(source: Source) -> None:
    """What may edit in batches is decided by the method that a plugin's behaves like."""
    editors = source.named(ast.ClassDef, "BatchEditor")
    function = source.named(ast.FunctionDef, "is_batchable_method", editors)
    assert isinstance(function, ast.FunctionDef)
    name = function.args.args[-1].arg
    line = f"{name} = known_name({name})"
    if source.has(line):
        return
    source.after_imports("", "from ..util.plugins import known_name")
    source.before(function.body[0], line)


def files_of_the_known(source: Source) -> None:
    """The check of a hyperparameter file's name takes plugins' names too."""
    if source.has("@also_with_plugins_names"):
        return
    function = source.named(ast.FunctionDef, "normalize_alg_name")
    source.after_imports("", "from .plugins import also_with_plugins_names")
    source.before(function, "@also_with_plugins_names")


def training_files_of_the_known(source: Source) -> None:
    """The same check of MEND's training files, which is a comparison of its own."""
    line = "from ...util.plugins import known_name"
    if source.has(line):
        return
    hparams = source.named(ast.ClassDef, "MENDTrainingHparams")
    compared = source.the(
        ast.Compare,
        "the comparison of alg with MEND",
        lambda node: (
            isinstance(node.left, ast.Subscript)
            and isinstance(node.comparators[0], ast.Constant)
            and node.comparators[0].value == "MEND"
        ),
        hparams,
    )
    source.after_imports(line)
    source.wrap(compared.left, "known_name(", ")")


def final_evaluation_has_an_archive(source: Source) -> None:
    """The trainer knows whether it saved, and saves before it evaluates what it saved."""
    trust_own_archives(source)
    if source.has("self.has_saved = True"):
        return
    trainer = source.named(ast.ClassDef, "BaseTrainer")
    initial = source.named(ast.FunctionDef, "__init__", trainer)
    save = source.named(ast.FunctionDef, "save_state", trainer)
    run = source.named(ast.FunctionDef, "run", trainer)
    assert isinstance(save, ast.FunctionDef)
    choice = source.the(
        ast.If,
        "the choice between two ways to load the best model",
        lambda node: (
            bool(node.orelse) and all(_loads(part) for part in (node.body[0], node.orelse[0]))
        ),
        run,
    )
    source.before(initial, "has_saved = False  # whether save_state has written an archive", "")
    source.after(save.body[-1], "self.has_saved = True")
    source.before(
        choice,
        "if not self.has_saved:  # a run shorter than val_interval",
        "    self.save_state(None)",
    )


def zeros_have_a_gradient(source: Source) -> None:
    """The layer of MEND's network keeps the gradient at 0 that its comment asks for."""
    line = "acts = torch.where(pre_act == 0, pre_act, acts)  # since torch 2.14 clamp's is 0 too"
    if source.has(line):
        return
    layer = source.named(ast.ClassDef, "LRLinear")
    clamped = source.the(
        ast.Assign,
        "acts = pre_act.clamp(...)",
        lambda node: (
            isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
            and node.value.func.attr == "clamp"
            and ast.unparse(node.targets[0]) == "acts"
            and ast.unparse(node.value.func.value) == "pre_act"
        ),
        layer,
    )
    source.after(clamped, line)


def trust_own_archives(source: Source) -> None:
    """Archives that this trainer writes hold a config object, which torch >= 2.6 must be told."""
    calls = source.all(ast.Call, _is_load)
    if not calls:
        raise Missing(f"{source.name}: no call of torch.load is there")
    for call in calls:
        if not any(word.arg == "weights_only" for word in call.keywords):
            last = [*call.args, *(word.value for word in call.keywords)][-1]
            source.wrap(last, "", ", weights_only=False")


def _is_load(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr == "load"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
    )


def _loads(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Call) and _is_load(node) for node in ast.walk(statement))


TOPICS = (
    Topic(
        """Find editing methods of installed packages

A method outside this repository has to be added to ALG_DICT and ALG_TRAIN_DICT by every script
that uses it. Now an installed package offers one through an entry point in the group `easyedit`,
and `alg_name` finds it. Nothing changes where no package offers anything; a plugin that fails is
left out with a warning, and cannot replace a method that is here.""",
        {
            "easyeditor/util/alg_dict.py": _say_where_more_come_from("ALG_DICT"),
            "easyeditor/util/alg_train_dict.py": _say_where_more_come_from("ALG_TRAIN_DICT"),
            "easyeditor/__init__.py": find_plugins,
        },
        (PLUGINS,),
    ),
    Topic(
        """Let a plugin's method edit in batches

BatchEditor is a closed Enum, so batch_edit refuses every name that is not in it. A plugin's
method now may do what the method may that it says it behaves like.""",
        {"easyeditor/editors/batch_editor.py": batches_as_known},
    ),
    Topic(
        """Read hyperparameter files that name a plugin's method

The classes of hyperparameters refuse any alg_name but their own. A plugin's method that behaves
like MEND now reads MEND's files, for editing and for training, and keeps its name.""",
        {
            "easyeditor/util/hparams.py": files_of_the_known,
            "easyeditor/trainer/training_hparams/mend_training_hparams.py": (
                training_files_of_the_known
            ),
        },
    ),
    Topic(
        """Let training end with its final evaluation on torch 2.6 and later

The archive holds the model's config, an object, and torch.load takes none since 2.6 unless it is
told: training with final_eval, the default of every MEND file, ended in an UnpicklingError, and so
did going on from an archive. A run shorter than val_interval had saved nothing to evaluate; it is
now saved first.""",
        {
            "easyeditor/trainer/BaseTrainer.py": final_evaluation_has_an_archive,
            "easyeditor/trainer/utils.py": trust_own_archives,
        },
    ),
    Topic(
        """Let MEND learn from its initial network on torch 2.14 and later

The network starts as the identity, with zeros before the clamp. A clamp's gradient at its bound was
1 and is 0 since torch 2.14, so that training moved nothing but the learned rates.""",
        {"easyeditor/trainer/algs/local_nn.py": zeros_have_a_gradient},
    ),
    Topic(
        """Test plugins and the final evaluation, without a GPU and without weights""",
        {},
        (TESTS,),
    ),
)
