"""The method that EasyEdit's editors call with hyperparameters and requests.

It is registered with the same plugin hook as methods of other packages.
"""

from __future__ import annotations

import copy as copying
import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from easyedit_mend_parallel.easyedit.host import keeps_edits_unless_asked
from easyedit_mend_parallel.easyedit.rollback import Rollback
from easyedit_mend_parallel.easyedit.trainable import trainable_class
from easyedit_mend_parallel.editor import EditResult, MendParallel, Trained
from easyedit_mend_parallel.hparams import HOST_METHOD, METHOD, MENDParallelHyperParams
from easyedit_mend_parallel.method.worse import WARN
from easyedit_mend_parallel.plugins.hookspecs import EditingMethod, Host, hookimpl

log = logging.getLogger(__name__)

EARLIER_AT_ONCE = 32
"""Maximum number of earlier requests that are verified after an edit, so that time stays flat."""


@dataclass
class _Network:
    """The trained network of one model, and the file that it was read from."""

    made_for: tuple[Any, ...]
    trained: Trained


class Executor:
    """MEND_PARALLEL for EasyEdit. Keeps one network for each model, and no model.

    `options` are fields of this package's hyperparameters, which are added to EasyEdit's own
    (`replace_mend`).
    """

    def __init__(self, keeps_edits: bool, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._says_how_batches_are_combined = options is not None
        self._keeps_edits = keeps_edits
        self._networks: weakref.WeakKeyDictionary[nn.Module, _Network] = weakref.WeakKeyDictionary()
        self._turns: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        """Index of the earlier request with which the next verification starts."""
        self._rollbacks: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Rollback]] = (
            weakref.WeakKeyDictionary()
        )

    def apply_to_model(
        self,
        model: nn.Module,
        tok: Any,
        requests: Sequence[Mapping[str, Any]],
        hparams: Any,
        copy: bool = False,
        return_orig_weights: bool = False,
        keep_original_weight: bool = False,
        **_: Any,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Edit `model` (or a copy of it) as EasyEdit's executors do.

        Returns the model and EasyEdit's `weights_copy`: a `Rollback`, or an empty dictionary if
        the original weights were not requested.
        """
        if copy:
            model = copying.deepcopy(model)
        last = self._rollbacks.get(model, _nothing)()
        if last is not None:
            last.settle()
        fields = MENDParallelHyperParams.taken_from(hparams, self.options)
        if fields.on_worse is None:  # EasyEdit's loops over a data set expect no exception
            fields = replace(fields, on_worse=WARN)
        made_for = (
            _version(fields.archive),
            tuple(fields.inner_params or ()),
            fields.network_config(),
            fields.network_device,
            fields.untrained,
            fields.special_tokens_in_labels,
        )
        known = self._networks.get(model)
        trained = known.trained if known is not None and known.made_for == made_for else None
        editor = MendParallel(model, tok, fields, network=trained)
        self._networks[model] = _Network(made_for, editor.trained)
        if self._says_how_batches_are_combined and len(requests) > 1 and fields.aggregate is None:
            self._say_how_batches_are_combined(editor.aggregate.how)
        result = editor.edit(requests)
        if fields.verify:
            self._say_lost(editor, result)
        if not return_orig_weights:
            return model, {}
        rollback = Rollback(result, not self._keeps_edits, keep_original_weight)
        self._rollbacks[model] = weakref.ref(rollback)
        return model, rollback

    def _say_lost(self, editor: MendParallel, result: EditResult) -> None:
        """Warn of requests that do not hold: this edit's, and some of the earlier ones in turn."""
        earlier = editor.earlier_requests(result)
        turn = self._turns.get(editor.model, 0) % max(1, len(earlier))
        chosen = (earlier[turn:] + earlier[:turn])[:EARLIER_AT_ONCE]
        self._turns[editor.model] = turn + len(chosen)
        verdicts = result.ask(editor.model, [*result.requests, *chosen])
        lost = [one.request for one in verdicts if not one.holds]
        if lost:
            log.warning(
                "after this edit %d of the %d verified requests do not hold: %s. "
                "MendParallel.verify verifies all; verify: false in the hparams verifies none",
                len(lost),
                len(verdicts),
                "; ".join(f"{one.prompt!r} → {one.target_new!r}" for one in lost),
            )

    def _say_how_batches_are_combined(self, how: str) -> None:
        self._says_how_batches_are_combined = False
        log.warning(
            "replace_mend: batches are combined by %s, since most edits of EasyEdit's mean loss "
            "fail; replace_mend(aggregate='mean_loss') restores EasyEdit's form",
            how,
        )


def _nothing() -> None:
    return None


def _version(archive: str | None) -> tuple[Any, ...]:
    """The identity of the file that `archive` names; it changes when the file is written again."""
    try:
        found = Path(str(archive)).stat()
    except OSError:
        return (archive,)  # the editor raises the error
    return archive, found.st_mtime_ns, found.st_size


@hookimpl
def editing_method(host: Host) -> EditingMethod:
    """MEND_PARALLEL. Decisions by a method's name are made as for EasyEdit's MEND."""
    executor = Executor(keeps_edits_unless_asked(host))
    return EditingMethod(
        METHOD, executor.apply_to_model, behaves_like=HOST_METHOD, trainable=trainable_class
    )
