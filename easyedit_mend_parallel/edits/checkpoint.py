"""Saves an edited model as an ordinary checkpoint, with its edits, from any placement.

transformers writes the files; this module provides the weights that transformers would not find.
Knows nothing of how edits are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import new_folder
from easyedit_mend_parallel.files.interrupts import interrupts_held, interrupts_pass
from easyedit_mend_parallel.weights.gathering import answer, asking
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import tied_names
from easyedit_mend_parallel.weights.partitions import is_partitioned, whole_shape
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.stores.output import hanging_updates, without_notice
from easyedit_mend_parallel.weights.stores.protocol import WRITABLE
from easyedit_mend_parallel.weights.stores.scoped import scoped_memory
from easyedit_mend_parallel.weights.target import find_target
from easyedit_mend_parallel.weights.transaction import twice
from easyedit_mend_parallel.weights.whole import is_distributed

NOT_MAPPED = {"": "cpu", "offloaded": "disk"}
"""A device map with which transformers looks for weights behind accelerate's hooks."""


@interrupts_held()
def save_edited(model: Any, folder: str | Path, tokenizer: Any = None, **options: Any) -> Path:
    """`model.save_pretrained(folder, **options)`, with every edit in the written weights.

    Works on any placement, with `apply: weight` and `apply: output`. Edits of outputs are written
    into the weights while the files are written, and then undone to the bit. `folder` must be new
    or empty. It is written whole or not at all; `tokenizer` is saved with the model. If the model
    is split between processes, every rank must call this function. The first rank writes, with the
    weights of one file in memory (`max_shard_size` is an option of `save_pretrained`); the others
    have one weight at a time.

    Raises EditError for edits of the outputs of quantized or tied weights, which cannot be saved.
    """
    if scoped_memory(model) is not None:
        raise EditError(
            "the model has scoped edits (apply: scoped), and no checkpoint can hold where an edit "
            "applies: keep them in a journal, or edit with `apply: weight`"
        )
    ranks = Ranks.of(model)
    with Ledger.of(model).lock, _written(model), ExitStack() as stack:
        with ranks.agree("make the folder"):
            fresh = new_folder(Path(folder)) if ranks.is_first else nullcontext()
            temporary = stack.enter_context(fresh)
        with ranks.agree("save the model"), _findable(model, ranks) as state:
            if temporary is not None:
                with interrupts_pass():
                    model.save_pretrained(temporary, **{"state_dict": state, **options})
                if tokenizer is not None:
                    tokenizer.save_pretrained(temporary)
        with ranks.agree("move the saved model to its folder"):
            stack.close()
    return Path(folder)


@contextmanager
def _written(model: nn.Module) -> Iterator[None]:
    """While the context lasts, edits of layers' outputs are in the weights too."""
    updates = hanging_updates(model)
    if not updates:
        yield
        return
    targets = [find_target(model, name) for name in updates]
    for target in targets:
        tied = sorted(tied_names(model, target.name) - {target.name})
        if tied:
            raise EditError(
                f"{target.name} is one weight with {', '.join(tied)}, and only the output of its "
                "own layer is edited: no checkpoint can hold that. Edit with apply: weight"
            )
        dtype = target.parameter(model).dtype
        if dtype not in WRITABLE:
            raise EditError(
                f"{target.name} is quantized ({dtype}), and its edits cannot be written into it: "
                "save the edit (EditResult.save), load the base without quantization, apply it "
                "there and save that"
            )
    entry = Ledger.of(model).change(targets, updates)
    try:
        with without_notice(model):
            yield
    finally:
        twice(entry.undo)


@contextmanager
def _findable(model: Any, ranks: Ranks) -> Iterator[dict[str, Tensor] | None]:
    """The state dict to save. While the context lasts, transformers finds offloaded weights.

    transformers looks for offloaded weights only if a device map lists them, which a model that was
    offloaded as a whole does not have. It also identifies tied weights by their addresses, which
    placeholders do not have: one name of each group is saved.
    """
    if not ranks.alone or any(map(is_partitioned, model.parameters())):
        with _gathered(model, ranks) as state:
            yield state
        return
    if all(parameter.device.type != "meta" for parameter in model.parameters()):
        yield None
        return
    state = model.state_dict()
    for name in list(state):  # embeddings come first, and others are tied to them
        for other in tied_names(model, name) - {name} if name in state else ():
            state.pop(other, None)
    mapped = {} if hasattr(model, "hf_device_map") else {"hf_device_map": NOT_MAPPED}
    with _for_now(model, **mapped):
        yield state


@contextmanager
def _gathered(model: Any, ranks: Ranks) -> Iterator[dict[str, Tensor]]:
    """`_findable` for a model that is split between processes: split weights look offloaded.

    Each weight is gathered when the first process writes its file, and freed after it. The other
    processes only answer. transformers' own method would gather the whole model on every process,
    needs a plan that a model parallelized by torch does not have, and would leave the others
    waiting if the first process fails.
    """
    with ranks.agree("list the weights"):
        state: dict[str, Tensor] = model.state_dict()
        kept = model.state_dict(keep_vars=True)  # a detached parameter does not say how it is split
        split = {name: tensor for name, tensor in kept.items() if is_distributed(tensor)}
    if not ranks.is_first:
        answer(split, ranks)
        yield {}
        return
    with (
        asking(split, ranks) as whole,
        _for_now(model.config, distributed_config=None),
        # sets `is_main_process`: the first of these processes may have any global rank
        _for_now(model, _tp_size=None, should_save_on_this_rank=bool),
    ):
        for name, tensor in split.items():
            state[name] = torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta")
        hook = SimpleNamespace(weights_map=whole)
        with _for_now(model, hf_device_map=NOT_MAPPED, _hf_hook=hook):
            yield state


@contextmanager
def _for_now(of: Any, **values: Any) -> Iterator[None]:
    """While the context lasts, `of` has these attributes."""
    had = {name: vars(of)[name] for name in values if name in vars(of)}
    vars(of).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(of).pop(name, None)
        vars(of).update(had)
