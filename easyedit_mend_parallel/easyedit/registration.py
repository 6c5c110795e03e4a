"""Registers the plugins' methods in EasyEdit, which then treats our method as it treats MEND.

`join` runs once, when EasyEdit has been imported (joining.py); before that nothing of EasyEdit is
touched.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from easyedit_mend_parallel.easyedit import early_release
from easyedit_mend_parallel.easyedit.host import (
    NAME,
    folder_of,
    is_early,
    keeps_edits_unless_asked,
    plugins_of_host,
)
from easyedit_mend_parallel.easyedit.hparams_classes import read_our_files
from easyedit_mend_parallel.easyedit.loading import (
    Assigned,
    from_pretrained_with,
    held_in_place,
)
from easyedit_mend_parallel.easyedit.method import Executor
from easyedit_mend_parallel.easyedit.trainable import trainable_class
from easyedit_mend_parallel.easyedit.trainers import join_trainers, presented
from easyedit_mend_parallel.errors import HparamsError, PluginError, suggestion
from easyedit_mend_parallel.hparams import (
    HOST_METHOD,
    MENDParallelHyperParams,
    MENDParallelTrainingHparams,
)
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host
from easyedit_mend_parallel.plugins.manager import editing_methods

log = logging.getLogger(__name__)

CALLS_OF_EDITOR = ("edit", "batch_edit", "edit_dataset", "normal_edit", "generate_edit")


@dataclass
class _Joined:
    """The registration in the EasyEdit of this process: what was changed there."""

    methods: dict[str, EditingMethod] = field(default_factory=dict)
    """The methods of plugins. An EasyEdit that finds plugins itself shares the dictionary."""
    replacement: dict[str, Any] | None = None
    """The options of `replace_mend`; None while EasyEdit's own MEND is active."""
    host: Host | None = None
    editors: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    """Editors that were made for a plugin's method."""
    original_mend: tuple[Any, Any] | None = None
    """EasyEdit's own MEND, for editing and for training, while it is replaced."""


_joined = _Joined()
_assigned = Assigned()


def replace_mend(**options: Any) -> None:
    """Make EasyEdit's own name `MEND` run the parallel-safe variant, for text models, in its
    editors and in its `EditTrainer`.

    Scripts and yaml files need no change. `options` are fields of `MENDParallelHyperParams` that
    are added to them, such as `model_kwargs` or `network_device`, and to files that name
    `MEND_PARALLEL` where EasyEdit's own classes read them. Editors made earlier, and multimodal and
    personality models, keep EasyEdit's MEND. `restore_mend()` reverts the call.

    Raises HparamsError for an unknown option.
    """
    fields = [option.name for option in dataclasses.fields(MENDParallelHyperParams)]
    for name in options:
        if name not in fields:
            raise HparamsError(
                f"replace_mend: {name!r} is not a hyperparameter" + suggestion(name, fields)
            )
    if not isinstance(options.get("model_kwargs") or {}, Mapping):
        raise HparamsError(
            f"replace_mend: model_kwargs is {options['model_kwargs']!r}; it has to map arguments "
            "of from_pretrained (device_map, dtype, ...) to their values"
        )
    _joined.replacement = options
    if _joined.host is not None:
        _put_replacement(_joined.host)


def restore_mend() -> None:
    """Revert `replace_mend`: the name `MEND` runs EasyEdit's own method again."""
    _joined.replacement = None
    if _joined.host is not None and _joined.original_mend is not None:
        _registry()[HOST_METHOD], _training_registry()[HOST_METHOD] = _joined.original_mend
        _joined.original_mend = None


def join(package: ModuleType) -> None:
    """Register everything in this EasyEdit. Called once, when it has been imported."""
    host = Host(package)
    _joined.host = host
    if plugins_of_host() is None:
        _add_methods(host)
        _treat_as_known(sys.modules[f"{NAME}.editors.batch_editor"].BatchEditor)
    else:
        _share_methods(host)
    if _joined.replacement is not None:
        _put_replacement(host)
    editing, training = (
        sys.modules[f"{NAME}.models.mend"].MENDHyperParams,
        sys.modules[f"{NAME}.trainer.training_hparams"].MENDTrainingHparams,
    )
    read_our_files(editing, MENDParallelHyperParams, _options_of_replacement)
    read_our_files(training, MENDParallelTrainingHparams, _options_of_replacement)
    _join_editor(sys.modules[f"{NAME}.editors.editor"].BaseEditor, is_early(folder_of(host)))
    join_trainers(
        sys.modules[f"{NAME}.trainer.BaseTrainer"].BaseTrainer,
        sys.modules[f"{NAME}.trainer.EditTrainer"].EditTrainer,
        _options_for,
        _easyedits_own_mend_to_train,
    )


def _add_methods(host: Host) -> None:
    registry, training_registry = _registry(), _training_registry()
    for method in editing_methods(host):
        _refuse_taken(method)
        registry[method.name] = method.apply_to_model
        if method.trainable is not None:
            training_registry[method.name.upper()] = method.trainable(host)
        _joined.methods[method.name] = method


def _share_methods(host: Host) -> None:
    """For an EasyEdit that finds installed plugins itself, now or soon: give it only those that it
    cannot find, and take over those that it found."""
    finder = plugins_of_host()
    assert finder is not None
    _joined.methods = finder.METHODS
    for method in editing_methods(host, installed=False):
        _refuse_taken(method)
        finder.add(method, host)


def _refuse_taken(method: EditingMethod) -> None:
    if method.name in _registry() or method.name.upper() in _training_registry():
        raise PluginError(
            f"a plugin offers a method named {method.name!r}, which EasyEdit has itself"
        )


def _put_replacement(host: Host) -> None:
    registry, training_registry = _registry(), _training_registry()
    if _joined.original_mend is None:
        _joined.original_mend = registry[HOST_METHOD], training_registry[HOST_METHOD]
    executor = Executor(keeps_edits_unless_asked(host), _joined.replacement)
    registry[HOST_METHOD] = executor.apply_to_model
    training_registry[HOST_METHOD] = trainable_class(host, _joined.replacement)


@contextmanager
def _easyedits_own_mend_to_train() -> Iterator[None]:
    """While the context lasts, EasyEdit's trainers find EasyEdit's own MEND."""
    registry = _training_registry()
    found = registry[HOST_METHOD]
    if _joined.original_mend is not None:
        registry[HOST_METHOD] = _joined.original_mend[1]
    try:
        yield
    finally:
        registry[HOST_METHOD] = found


def _registry() -> dict[str, Any]:
    registry: dict[str, Any] = sys.modules[f"{NAME}.util.alg_dict"].ALG_DICT
    return registry


def _training_registry() -> dict[str, Any]:
    registry: dict[str, Any] = sys.modules[f"{NAME}.util.alg_train_dict"].ALG_TRAIN_DICT
    return registry


def _options_for(name: str, hparams: Any) -> Mapping[str, Any] | None:
    """The `model_kwargs` for a plugin's method; None for EasyEdit's methods."""
    if name in _joined.methods:
        return getattr(hparams, "model_kwargs", None) or {}
    if name == HOST_METHOD and _joined.replacement is not None:
        return _joined.replacement.get("model_kwargs") or {}
    return None


def _options_of_replacement() -> Mapping[str, Any]:
    return _joined.replacement or {}


def _treat_as_known(batch_editor: Any) -> None:
    """Allow batches for a plugin's method if EasyEdit allows them for the one it behaves like."""
    original = batch_editor.is_batchable_method

    @functools.wraps(original)
    def is_batchable_method(alg_name: str) -> Any:
        return original(_known_name(alg_name))

    batch_editor.is_batchable_method = staticmethod(is_batchable_method)


def _known_name(name: str) -> str:
    method = _joined.methods.get(name)
    return getattr(method, "behaves_like", None) or name


def _join_editor(editor_class: Any, early: bool) -> None:
    original = editor_class.__init__

    @functools.wraps(original)
    def __init__(editor: Any, hparams: Any, *args: Any, **kwargs: Any) -> None:
        name = str(getattr(hparams, "alg_name", None))
        model_kwargs = _options_for(name, hparams)
        if model_kwargs is None:
            original(editor, hparams, *args, **kwargs)
            return
        with _loading(hparams, model_kwargs, early):
            original(editor, hparams, *args, **kwargs)
        editor.alg_name, editor.apply_algo = name, _registry()[name]
        _joined.editors.add(editor)
        if early and hparams.model_parallel and editor.model.device.index is not None:
            hparams.device = editor.model.device.index
        if not isinstance(editor.model_name, str):
            _settle_loaded_pair(editor)

    editor_class.__init__ = __init__
    _assigned.join(editor_class)
    if not early:
        editor_class.batch_edit = _saying_what_was_undone(editor_class.batch_edit)
    else:
        for name in CALLS_OF_EDITOR:
            if name in vars(editor_class):
                setattr(editor_class, name, _with_cuda_elsewhere(vars(editor_class)[name]))


@contextmanager
def _loading(hparams: Any, model_kwargs: Mapping[str, Any], early: bool) -> Iterator[None]:
    """EasyEdit's own loading for a plugin's method: as for the method it behaves like, with the
    user's `model_kwargs`, and without moving a model that has a device map."""
    with ExitStack() as stack:
        if early:
            stack.enter_context(early_release.cuda_elsewhere())
        if isinstance(hparams.model_name, str):
            by_map = {"device_map": "auto"} if hparams.model_parallel else {}
            stack.enter_context(from_pretrained_with({**by_map, **model_kwargs}))
        else:
            stack.enter_context(held_in_place(hparams.model_name[0], hparams.model_parallel))
        stack.enter_context(_assigned.held())
        # Our code sets the device map and keeps a dispatched model in place, so EasyEdit uses its
        # simplest path; the other path of the early release also fails on a CPU.
        stack.enter_context(presented(hparams, "model_parallel", False))
        stack.enter_context(presented(hparams, "alg_name", _known_name(hparams.alg_name)))
        yield


def _settle_loaded_pair(editor: Any) -> None:
    """Set what EasyEdit's evaluation needs of an editor that was given `(model, tokenizer)`.

    The evaluation decides by the model's name, which a pair does not have, and it pads.
    """
    editor.model_name = editor.model.config.model_type
    if editor.tok.pad_token_id is None:
        log.info("the tokenizer has no padding token; its end-of-sequence token is used")
        editor.tok.pad_token_id = editor.tok.eos_token_id


def _saying_what_was_undone(batch_edit: Any) -> Any:
    """EasyEdit's `batch_edit`, which undoes each batch unless `sequential_edit` is true."""
    signature = inspect.signature(batch_edit)

    @functools.wraps(batch_edit)
    def saying(*args: Any, **kwargs: Any) -> Any:
        answer = batch_edit(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        if args[0] in _joined.editors and not given.get("sequential_edit", False):
            log.warning(
                "batch_edit measured each batch and undid it: the model is unedited. "
                "batch_edit(..., sequential_edit=True) keeps the edits in it"
            )
        return answer

    return saying


def _with_cuda_elsewhere(call: Any) -> Any:
    @functools.wraps(call)
    def redirected(editor: Any, *args: Any, **kwargs: Any) -> Any:
        if editor not in _joined.editors:
            return call(editor, *args, **kwargs)
        with early_release.cuda_elsewhere():
            return call(editor, *args, **kwargs)

    return redirected
