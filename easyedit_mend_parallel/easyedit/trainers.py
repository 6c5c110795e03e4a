"""Adapts EasyEdit's trainers: how they load, resume and end for a plugin's method.

For EasyEdit's own methods they stay as they are. Knows nothing of what is trained.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from easyedit_mend_parallel.easyedit.loading import from_pretrained_with
from easyedit_mend_parallel.easyedit.trainable import Trainable
from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.hparams import HOST_METHOD
from easyedit_mend_parallel.method.archive import load_archive, readable
from easyedit_mend_parallel.weights.placement import input_device, is_dispatched

log = logging.getLogger(__name__)

OptionsFor = Callable[[str, Any], "Mapping[str, Any] | None"]
"""From (name, hyperparameters) to a method's `model_kwargs`; None for EasyEdit's methods."""


def join_trainers(
    base: Any,
    text: type,
    options_for: OptionsFor,
    easyedits_own_mend: Callable[[], AbstractContextManager[None]],
) -> None:
    """Wrap EasyEdit's `base` trainer class, and its subclass `text`, which trains text models.

    Within `easyedits_own_mend` EasyEdit's registry has EasyEdit's own MEND.
    """
    _join_construction(base, text, options_for, easyedits_own_mend)
    _join_run(base, text, options_for)


def _join_construction(
    base: Any,
    text: type,
    options_for: OptionsFor,
    easyedits_own_mend: Callable[[], AbstractContextManager[None]],
) -> None:
    original = base.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(trainer: Any, *args: Any, **kwargs: Any) -> None:
        config = signature.bind(trainer, *args, **kwargs).arguments["config"]
        model_kwargs = options_for(_method(config), config)
        if model_kwargs is None:
            original(trainer, *args, **kwargs)
        elif isinstance(trainer, text):
            construct = functools.partial(original, trainer, *args, **kwargs)
            _construct(construct, trainer, config, model_kwargs)
        elif _method(config) == HOST_METHOD:
            with easyedits_own_mend():
                original(trainer, *args, **kwargs)
        else:
            raise HparamsError(
                f"{config.alg} trains text models, with {text.__name__}; "
                f"{type(trainer).__name__} has only EasyEdit's own methods: write alg: MEND"
            )

    base.__init__ = __init__


def _construct(
    original: Callable[[], None], trainer: Any, config: Any, model_kwargs: Mapping[str, Any]
) -> None:
    """EasyEdit's own construction, with the user's `model_kwargs`, from any archive of MEND."""
    network_only = known = None
    with ExitStack() as stack:
        if model_kwargs:
            stack.enter_context(from_pretrained_with(model_kwargs))
        if model_kwargs.get("device_map") is not None:
            # The trainer moves its whole module, with the model, unless it is parallel.
            config.model_parallel = True
        # If the path is not a file, EasyEdit treats it as a part of a name and searches for it.
        if config.archive is not None and Path(config.archive).is_file():
            archive = load_archive(config.archive)
            known = replace(archive, state={})
            if archive.has_optimizer:
                stack.enter_context(readable(archive.path))
            else:
                network_only = archive
                stack.enter_context(presented(config, "archive", None))
            del archive
        original()
    if network_only is not None:
        log.info("%s has no optimizer state: it starts new", network_only.path)
        trainer.model.load_state_dict(network_only.state)
    if isinstance(trainer.model, Trainable):
        trainer.model.know_tokenizer(getattr(trainer.train_set, "tok", None))
        if known is not None:
            known.say_other_labels(trainer.model.special_tokens_in_labels)
    if is_dispatched(trainer.model.model):
        # EasyEdit reads the device of the first weight; an offloaded weight has none.
        config.device = input_device(trainer.model.model)


def _join_run(base: Any, text: type, options_for: OptionsFor) -> None:
    original = base.run

    @functools.wraps(original)
    def run(trainer: Any) -> None:
        """EasyEdit's own run in two halves, so that its final evaluation has an archive.

        EasyEdit saves only at multiples of `val_interval`. After a shorter run there would be no
        archive, or only that of an earlier run.
        """
        config = trainer.config
        ours = isinstance(trainer, text) and options_for(_method(config), config) is not None
        if not ours or config.eval_only:
            original(trainer)
            return
        before = _identity(Path(trainer.save_path))
        with presented(config, "final_eval", False):
            original(trainer)
        if isinstance(trainer.model, Trainable):
            _refuse_untrained(trainer)
        if _identity(Path(trainer.save_path)) == before:
            log.info("the run ended before val_interval (%s): saved now", config.val_interval)
            trainer.save_state(None)
        if config.final_eval:
            steps = trainer.global_iter
            with presented(config, "max_iters", 0):  # no training: the evaluation alone
                original(trainer)
            trainer.global_iter = steps

    base.run = run


def _refuse_untrained(trainer: Any) -> None:
    trainer.model.watch.refuse_dead()
    if trainer.model.steps == 0:
        raise TrainingError(
            f"EasyEdit's loop made no training step: max_iters is {trainer.config.max_iters} and "
            f"an epoch has {len(trainer.train_loader)} batches. It makes one step less than "
            "max_iters, and the early release rounds to whole epochs: raise max_iters"
        )


def _method(config: Any) -> str:
    return str(getattr(config, "alg", None)).upper()


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells whether a file was written again; EasyEdit first moves the old one away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def presented(hparams: Any, name: str, value: Any) -> Iterator[None]:
    """While the context lasts, EasyEdit reads `value` in this field."""
    own = getattr(hparams, name)
    setattr(hparams, name, value)
    try:
        yield
    finally:
        setattr(hparams, name, own)
