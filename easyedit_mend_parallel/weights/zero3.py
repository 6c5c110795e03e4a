"""Recognises models that DeepSpeed's ZeRO-3 partitions, puts gathered weights back into their
parts, and refuses what no store can write.

Reads what DeepSpeed leaves on modules and parameters, and does not import it. Knows nothing of how
a weight is written.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from easyedit_mend_parallel.errors import PlacementError
from easyedit_mend_parallel.weights.modules import modules_around
from easyedit_mend_parallel.weights.partitions import is_partitioned, release

INFLIGHT = "ds_inflight_param_registry"
"""The attribute with which the engine marks the module that it was given."""
NEEDED = (
    "ds_tensor",
    "ds_numel",
    "ds_shape",
    "ds_status",
    "ds_process_group",
    "ds_active_sub_modules",
    "partition",
)
"""The attributes of a partitioned parameter that this package reads."""
TESTED = "0.19"
HOOKS = "deepspeed.runtime.zero.parameter_offload"

logger = logging.getLogger(__name__)
_said: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The models of which `say_of_copies` has said something."""


def gathers(model: nn.Module, layer_name: str) -> bool:
    """Whether ZeRO-3 gathers weights of the module, or of one in it, for its forward pass."""
    return any(map(is_partitioned, model.get_submodule(layer_name).parameters()))


def reshard(model: nn.Module, layer_name: str | None = None) -> None:
    """Free the values of weights that ZeRO-3 left whole, or was about to gather, for what comes
    after a pass: those of small (persistent) parameters, those that it prefetched, and those of
    modules whose backward pass was not run. The next forward pass gathers them again.

    With `layer_name` only those of that layer. No communication.
    """
    if layer_name is None:
        release(model.parameters(), _inflight(model.modules()))
        _forget_backward(model)
    else:
        layer = model.get_submodule(layer_name)
        own = [one for one in layer.parameters(recurse=False) if is_partitioned(one)]
        if own:
            release(own, _inflight(modules_around(model, layer_name)))


@contextmanager
def ended(model: nn.Module) -> Iterator[None]:
    """If an exception leaves the context, ZeRO-3 forgets the forward pass that it ended."""
    stack = getattr(sys.modules.get(HOOKS), "FWD_MODULE_STACK", [])
    depth = len(stack)
    try:
        yield
    except BaseException:
        if gathers(model, ""):
            del stack[depth:]
            with suppress(RuntimeError):  # of a gather that another process left out
                reshard(model)
        raise


def refuse(model: nn.Module) -> None:
    """Raise PlacementError for a partitioned model that cannot be edited: without an engine, of an
    engine that is too old, or with parts that are not plain slices in memory."""
    if hasattr(type(model), "zero_optimization_stage"):
        raise PlacementError(
            "this is DeepSpeed's engine and not the model: give the model in it (engine.module, or "
            "accelerator.unwrap_model(engine))"
        )
    partitioned = [(name, one) for name, one in model.named_parameters() if is_partitioned(one)]
    if not partitioned:
        return
    first = partitioned[0][1]
    for name, parameter in partitioned:
        _refuse_parameter(name, parameter, first)
    if not any(INFLIGHT in vars(module) for module in model.modules()):
        raise PlacementError(
            f"{partitioned[0][0]} is partitioned by DeepSpeed ZeRO-3, and no engine gathers this "
            "model's weights: call deepspeed.initialize(model=model, config=...) first, and give "
            "engine.module, not a part of it"
        )
    _refuse_optimizer(getattr(first, "_z3_optimizer", None))


def say_of_copies(model: nn.Module, name: str) -> None:
    """Log a warning, once for each model, if an optimizer of ZeRO-1 or ZeRO-2 keeps its own copy of
    the weight `name`, which does not get an edit."""
    if hasattr(model.get_parameter(name), "_hp_mapping") and model not in _said:
        _said.add(model)
        logger.warning(
            "DeepSpeed's optimizer (ZeRO-1, ZeRO-2, or its bf16 optimizer) has an fp32 copy of %s "
            "and of other weights, which an edit does not change: its next step takes the edit out "
            "of the model again. Edit after the last step, or train with ZeRO-3, whose copies are "
            "edited too",
            name,
        )


def _refuse_parameter(name: str, parameter: Any, first: Any) -> None:
    missing = [one for one in NEEDED if not hasattr(parameter, one)]
    if missing:
        version = getattr(sys.modules.get("deepspeed"), "__version__", "unknown")
        raise PlacementError(
            f"{name} is partitioned by DeepSpeed {version}, whose parameters have no "
            f"{', '.join(missing)}: this version is too old, or too new (tested: {TESTED})"
        )
    part = parameter.ds_tensor
    why = ""
    if getattr(parameter, "nvme_swapper", None) is not None:
        why = "kept on NVMe (offload_param)"
    elif part.device != parameter.device:
        why = f"kept on {part.device} while it computes on {parameter.device} (offload_param)"
    elif hasattr(part, "ds_quant_scale") or not part.is_floating_point():
        why = "quantized (zero_quantized_weights or zero_quantized_nontrainable_weights)"
    elif getattr(parameter, "ds_zero_param_process_group", None) is not None:
        why = "kept a second time within each node (zero_hpz_partition_size)"
    elif hasattr(parameter, "comm"):
        why = "partitioned by MiCS"
    elif parameter.ds_process_group is not first.ds_process_group:
        why = "partitioned over other processes than the model's first weight"
    if why:
        raise PlacementError(
            f"{name} is partitioned by DeepSpeed ZeRO-3 and {why}, which this package cannot edit: "
            "turn that off in the engine's config, or load the model with fully_shard (FSDP2), a "
            "tensor-parallel plan (DistributedConfig(tp_plan='auto')) or a device_map"
        )


def _refuse_optimizer(optimizer: Any) -> None:
    of = "offload_optimizer: nvme" if getattr(optimizer, "swap_optimizer", False) else ""
    of = "zenflow" if getattr(optimizer, "zenflow", False) else of
    offload = getattr(optimizer, "parameter_offload", None)
    of = "zero_quantized_weights" if getattr(offload, "zero_quantized_weights", False) else of
    if of:
        raise PlacementError(
            f"the engine of this model runs with {of}, under which this package cannot edit it: "
            "turn that off in the engine's config"
        )


def _inflight(modules: Any) -> Any:
    return next((vars(one)[INFLIGHT] for one in modules if INFLIGHT in vars(one)), {})


def _forget_backward(model: nn.Module) -> None:
    """Let the engine forget the modules whose backward pass began and did not end: that of an edit
    ends at its lowest target."""
    found = (getattr(one, "_z3_optimizer", None) for one in model.parameters())
    offload: Any = getattr(next(filter(None, found), None), "parameter_offload", None)
    if hasattr(offload, "release_backward_leftovers"):
        offload.release_backward_leftovers()
