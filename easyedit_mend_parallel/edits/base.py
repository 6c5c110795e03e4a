"""Identifies a base model by checksums of the weights that an edit changed.

Reads weights where they are stored, a few rows at a time, and writes none. Knows nothing of
updates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import EditError, TargetError
from easyedit_mend_parallel.method.sequence_entry import SequenceEntry
from easyedit_mend_parallel.weights import offload as holder
from easyedit_mend_parallel.weights.change import Entry
from easyedit_mend_parallel.weights.fully_sharded import is_fully_sharded
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.offload import tied_names
from easyedit_mend_parallel.weights.partitions import whole_shape
from easyedit_mend_parallel.weights.stores.protocol import WRITABLE
from easyedit_mend_parallel.weights.target import Target, find_target, parameter_of
from easyedit_mend_parallel.weights.whole import is_distributed, whole_tensor

Sums: TypeAlias = Mapping[str, str]
"""{dtype: sha256 of a tensor's bytes in that dtype}"""

NARROWER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float32: (torch.bfloat16, torch.float16)
}
"""The dtypes in which a weight gets a checksum besides its own, so that the same checkpoint is
recognised when it is loaded in one of them."""
PIECE = 1 << 22
"""Maximum number of a weight's elements on the CPU while its checksum is computed."""


def kept_weight(model: nn.Module, name: str) -> Tensor:
    """The values of a weight, wherever they are stored. Raises EditError if it has none."""
    kept = holder.kept_weight(model, name)
    if kept is None:
        raise EditError(
            f"{name} has no values, and accelerate stores none for it: load the model "
            "with from_pretrained"
        )
    return kept


def target_in(model: nn.Module, target: Target, source: object) -> Target:
    """A file's `target` as it is in `model`, which may store its weight in another orientation.

    Raises EditError, which names the file `source`, for a model without it or with other widths.
    """
    try:
        here = find_target(model, target.name)
    except TargetError as error:
        raise EditError(f"{source} was made for another model: {error}") from None
    if here.shape != target.shape:
        raise EditError(
            f"{source} was made for another model: {target.name} maps {target.in_features} to "
            f"{target.out_features} there, and {here.in_features} to {here.out_features} in this "
            "one"
        )
    return here


def sums_of(weight: Tensor) -> Sums:
    """The checksums of `weight`, in its own dtype and in narrower ones."""
    dtypes = (weight.dtype, *NARROWER.get(weight.dtype, ()))
    digests = {dtype: hashlib.sha256() for dtype in dtypes}
    for piece in torch.split(weight.reshape(-1), PIECE):
        here = piece.cpu()
        for dtype, digest in digests.items():
            digest.update(here.to(dtype).contiguous().view(torch.uint8).numpy().data)
    return {_name(dtype): digest.hexdigest() for dtype, digest in digests.items()}


def agree(mine: Sums, dtype: str, saved: Sums) -> bool | None:
    """Whether a weight of `dtype` with the checksums `mine` equals the one with `saved`.

    Returns None if the two cannot be compared. They can if `saved` has a checksum in this dtype, or
    if this weight is fp32 and the saved one narrower: `mine` then has the checksum of its rounded
    values, as `from_pretrained` would round them.
    """
    common = [dtype] if dtype in saved else [other for other in mine if other in saved]
    return mine[common[0]] == saved[common[0]] if common else None


def describe_base(
    entry: Entry | SequenceEntry, targets: Mapping[str, Target], whole: bool = False
) -> dict[str, Any]:
    """Describe the model in which the change `entry` was made, for `check_base`, as JSON values.

    `stacked` says whether it has weights of three dimensions (the experts of a block in one).
    For each weight: its dtype, the weights tied to it, and the checksums of its bits before this
    change (`before`) and before any change of this package (`base`); of an expert's also the number
    of experts in its stack, and the place of the stack among its layer's parameters (`stack`). For
    the model: its name, its class, and the checksums of its vectors, which quantization does not
    change. Weights that are split between processes have checksums only with `whole`, which every
    process must then pass.
    """
    model = entry.model
    # An edit of a sequence is computed on the model without any edits.
    in_sequence = isinstance(entry, SequenceEntry)
    before = Ledger.of(model).before() if in_sequence else entry.before()
    return describe_weights(model, targets, before, whole)


def describe_weights(
    model: Any, targets: Iterable[str], before: Mapping[str, Tensor], whole: bool = False
) -> dict[str, Any]:
    """As `describe_base`, of the weights `targets`. `before` has the bits of those that differ
    now."""
    base = Ledger.of(model).before()
    weights = {}
    for name in targets:
        earlier = before.get(name)
        if earlier is None or earlier.device.type == "meta":
            earlier = kept_weight(model, name)
        about: dict[str, Any] = {
            "dtype": _name(earlier.dtype),
            "tied": sorted(tied_names(model, name) - {name}),
        }
        parameter, expert = parameter_of(name)
        now = model.get_parameter(parameter)
        if expert is not None:
            layer, _, own = parameter.rpartition(".")
            place = list(model.get_submodule(layer)._parameters).index(own)
            about["stack"] = {"experts": len(now), "place": place}
        if whole or not is_distributed(now):
            first = base.get(name)
            about["before"] = sums_of(whole_tensor(earlier, now))
            about["base"] = about["before"] if first is None else sums_of(whole_tensor(first, now))
        weights[name] = about
    about_model = {
        "id": _identity(model),
        "class": _class(model),
        "encoder_decoder": bool(getattr(model.config, "is_encoder_decoder", False)),
        "stacked": any(len(whole_shape(parameter)) == 3 for parameter in model.parameters()),
        "vectors": vectors(model, whole),
    }
    return {"model": about_model, "weights": weights}


def vectors(model: nn.Module, whole: bool) -> Sums:
    """The checksums of all one-dimensional parameters (norms, biases) together. Empty if they have
    several dtypes, or if they are split between processes and `whole` is false."""
    found = [name for name, one in model.named_parameters() if len(whole_shape(one)) == 1]
    tensors = [kept_weight(model, name) for name in sorted(found)]
    if not tensors or len({tensor.dtype for tensor in tensors}) > 1:
        return {}
    if not whole and any(is_distributed(tensor) for tensor in tensors):
        return {}
    return sums_of(torch.cat([whole_tensor(tensor).cpu() for tensor in tensors]))


def check_base(
    model: Any, targets: Sequence[Target], about: Mapping[str, Any], what: str
) -> dict[str, str]:
    """Raise EditError if `model` is not the base that `about` (`describe_base`) describes.

    A weight matches if its bits, now or before this package first changed them, are those from
    before the edit or from before all edits. Returns {target name: why it could not be compared,
    and what was compared instead}. `what` names the edit in errors. If the model is split between
    processes, every process must call this.
    """
    first = Ledger.of(model).before()
    others: list[str] = []
    unknown: dict[str, str] = {}
    for target in targets:
        saved = about["weights"].get(target.name, {})
        now = kept_weight(model, target.name)
        if now.dtype not in WRITABLE:  # packed
            unknown[target.name] = f"it is quantized ({_name(now.dtype)})"
            continue
        if "base" not in saved:
            unknown[target.name] = "it had no checksum when the edit was saved"
            continue
        verdict = _is_base([first.get(target.name, now), now], now, saved)
        if verdict is None:
            unknown[target.name] = (
                f"the edit was made on {saved['dtype']} and the weight is {_name(now.dtype)} here"
            )
        elif not verdict:
            others.append(target.name)
    if others:
        raise EditError(
            f"{what} was made on another base model ({about['model']['id']}): "
            f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} other bits in this "
            "model. Load that base; after edits that another tool made, load it again. "
            "check=False applies the edit anyway"
        )
    instead = _compare_otherwise(model, about["model"], what) if unknown else ""
    return {name: f"{why}; {instead}" for name, why in unknown.items()}


def _is_base(weights: Sequence[Tensor], like: Tensor, saved: Mapping[str, Any]) -> bool | None:
    """Whether one of `weights` is the base of the edit, or the weight on which it was computed.
    They are split between processes as `like` is."""
    verdict: bool | None = None
    for number, weight in enumerate(weights):
        if number and weight is weights[0]:
            continue
        mine = sums_of(whole_tensor(weight, like))
        for which in ("base", "before"):
            one = agree(mine, _name(weight.dtype), saved[which])
            if one:
                return True
            verdict = verdict if one is None else one
    return verdict


def _compare_otherwise(model: nn.Module, about: Mapping[str, Any], what: str) -> str:
    """Compare the class, norms and biases of the model instead of a weight; say which."""
    if _class(model) != about["class"]:
        raise EditError(
            f"{what} was made on a {about['class']} ({about['id']}), and this model is a "
            f"{_class(model)}: load that base"
        )
    mine, saved = vectors(model, whole=True), about["vectors"]
    common = sorted(mine.keys() & saved.keys())
    if not common:
        return "the model's class and the weights' shapes were compared instead"
    if not any(mine[dtype] == saved[dtype] for dtype in common):
        raise EditError(
            f"{what} was made on another base model ({about['id']}): the norms and biases of this "
            "model have other bits. Load that base; check=False applies the edit anyway"
        )
    return "the model's class, its norms and biases, and the weights' shapes were compared instead"


def _class(model: nn.Module) -> str:
    """The name of the model's own class; FSDP2 makes it a class of its own, with a prefix."""
    name = type(model).__name__
    return name.removeprefix("FSDP") if is_fully_sharded(model, "") else name


def _identity(model: Any) -> str:
    """The name from which the model was loaded: a hub id, or the last part of a path."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return Path(name).name if Path(name).exists() else name


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
