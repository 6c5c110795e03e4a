"""An edited model saved as an ordinary checkpoint, with the edits in it, wherever its weights lie.

transformers writes the files; this gives it what it would not find by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError
from easyedit_mend_parallel.files import new_folder
from easyedit_mend_parallel.holder import tied_names
from easyedit_mend_parallel.ledger import Ledger
from easyedit_mend_parallel.ranks import Ranks
from easyedit_mend_parallel.sharding import is_distributed
from easyedit_mend_parallel.stores.output import hanging_updates, without_notice
from easyedit_mend_parallel.stores.protocol import WRITABLE
from easyedit_mend_parallel.target import find_target

NOT_MAPPED = {"": "cpu", "offloaded": "disk"}
"""A device map that makes transformers look for weights behind accelerate's hooks."""


def save_edited(model: Any, folder: str | Path, tokenizer: Any = None, **options: Any) -> Path:
    """`model.save_pretrained(folder, **options)` with every edit in the weights that are written.

    For models on any placement, with `apply: weight` and `apply: output`. Edits of outputs are
    written into the weights while these are saved, and taken out again to the bit. `folder` must be
    new or empty, and appears whole or not at all; `tokenizer` is saved beside the model. Every rank
    of a model that is split between processes has to call this; the first gathers the weights in
    its memory, whole, and writes them.

    Raises EditError where that cannot be: edits of the outputs of quantized or tied weights.
    """
    ranks = Ranks.of(model)
    with Ledger.of(model).lock, _written(model), ExitStack() as stack:
        with ranks.together("make the folder"):
            fresh = new_folder(Path(folder)) if ranks.is_first else nullcontext()
            temporary = stack.enter_context(fresh)
        with ranks.together("save the model"):
            found = _findable(model) if ranks.alone else _gathered(model, ranks.is_first)
            state = stack.enter_context(found)
            if temporary is not None:
                model.save_pretrained(temporary, **{"state_dict": state, **options})
                if tokenizer is not None:
                    tokenizer.save_pretrained(temporary)
        with ranks.together("move the saved model to its folder"):
            stack.close()
    return Path(folder)


@contextmanager
def _written(model: nn.Module) -> Iterator[None]:
    """While the context lasts, what hangs on layers' outputs is in their weights too."""
    updates = {f"{layer}.weight": update for layer, update in hanging_updates(model).items()}
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
        dtype = target.layer(model).get_parameter("weight").dtype
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
        entry.undo()


@contextmanager
def _findable(model: Any) -> Iterator[dict[str, Tensor] | None]:
    """While the context lasts transformers finds offloaded weights; the state dict to save.

    It looks for them only where a device map says that there are any, which a model lacks that
    was offloaded as a whole; and it knows tied weights by their addresses, which placeholders
    lack: of each group one name is saved.
    """
    if all(parameter.device.type != "meta" for parameter in model.parameters()):
        yield None
        return
    state: dict[str, Tensor] = model.state_dict()
    for name in list(state):  # embeddings come first, and those are what others are tied to
        for other in tied_names(model, name) - {name} if name in state else ():
            state.pop(other, None)
    mapped = hasattr(model, "hf_device_map")
    if not mapped:
        vars(model)["hf_device_map"] = dict(NOT_MAPPED)
    try:
        yield state
    finally:
        if not mapped:
            del vars(model)["hf_device_map"]


@contextmanager
def _gathered(model: Any, keep: bool) -> Iterator[dict[str, Tensor]]:
    """The whole weights of a model that is split between processes, on the CPU, where to `keep`.

    While the context lasts transformers takes it for a model that one process holds: it would
    gather the weights by its own plan, which a model that torch made parallel lacks, and wait for
    the other processes.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if is_distributed(tensor) else tensor
        if keep:
            state[name] = whole.cpu()
    plans = [(model.config, "distributed_config"), (model, "_tp_size")]
    hidden = [(of, name, vars(of).pop(name)) for of, name in plans if name in vars(of)]
    for of, name, _ in hidden:
        setattr(of, name, None)
    try:
        yield state
    finally:
        for of, name, value in hidden:
            setattr(of, name, value)
