"""Finds targets: weights of linear layers and of stacked experts, with widths and orientation.

Both follow from the layer and its type, never from the model's name. Knows nothing of devices or of
where the weight is stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from easyedit_mend_parallel.errors import PlacementError, TargetError, suggestion
from easyedit_mend_parallel.weights.partitions import whole_shape
from easyedit_mend_parallel.weights.whole import is_distributed

EXPERT = re.compile(r"(.+)\[(\d+)\]")
"""The name of one expert's weight in a stack: a parameter's name and the expert's number."""


@dataclass(frozen=True)
class Target:
    """One weight to edit: a parameter, or one expert's slice of a parameter (E, ., .).

    `name` is the parameter's name in the model, of a slice with its number: `…gate_up_proj[7]`.
    `in_features` and `out_features` are the widths of its layer (of the whole layer, also if the
    weight is sharded or packed). `transposed` is true if the weight is stored in × out
    (transformers' `Conv1D`) instead of out × in (`nn.Linear`).
    """

    name: str
    in_features: int
    out_features: int
    transposed: bool = False

    @cached_property
    def parameter_name(self) -> str:
        """The name of the parameter that holds the weight."""
        return parameter_of(self.name)[0]

    @cached_property
    def expert(self) -> int | None:
        """The number of the slice; None for a weight that is a whole parameter."""
        return parameter_of(self.name)[1]

    @property
    def layer_name(self) -> str:
        return self.parameter_name.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The parameter's name in its layer."""
        return self.parameter_name.rpartition(".")[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out). Targets of the same shape can share a network."""
        return self.in_features, self.out_features

    @property
    def name_in_layer(self) -> str:
        """`attribute`, of one expert's weight with its number."""
        return self.name.removeprefix(self.layer_name + ".")

    def layer(self, model: nn.Module) -> nn.Module:
        """The target's layer in `model`, looked up at each call, since models are re-dispatched."""
        return model.get_submodule(self.layer_name)

    def parameter(self, model: nn.Module) -> nn.Parameter:
        """The parameter that holds the weight, as it is now: offloaded, it has no values."""
        return self.layer(model).get_parameter(self.attribute)

    def part_of(self, parameter: Tensor) -> Tensor:
        """The weight in its parameter's values: these themselves, or a view of the slice."""
        return parameter if self.expert is None else parameter[self.expert]


def parameter_of(name: str) -> tuple[str, int | None]:
    """A target's name as the parameter's name and the number of its slice, if it is one."""
    found = EXPERT.fullmatch(name)
    return (name, None) if found is None else (found[1], int(found[2]))


def find_targets(model: nn.Module, names: Sequence[str]) -> list[Target]:
    """The targets of `names` (EasyEdit's `inner_params`), in the order given.

    The name of a stack of experts stands for each expert's weight in it. Raises TargetError for a
    name that is given twice, is not in the model, has not two dimensions (of a stack: three), or
    does not belong to a linear layer or to experts.
    """
    if not names:
        raise TargetError("inner_params is empty: name at least one weight to edit")
    names = [one for name in names for one in weights_named(model, name)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TargetError(f"inner_params names {', '.join(repeated)} more than once")
    targets = [find_target(model, name) for name in names]
    seen: dict[tuple[int, int | None], str] = {}
    for target in targets:
        other = seen.setdefault((id(target.parameter(model)), target.expert), target.name)
        if other != target.name:
            raise TargetError(f"{target.name} and {other} are one tied weight: name one of them")
    _refuse_shared(model, targets)
    return targets


def weights_named(model: nn.Module, name: str) -> list[str]:
    """The names of the weights that `name` stands for: of a stack of experts, every expert's."""
    layer_name, _, parameter_name = name.rpartition(".")
    try:
        parameter = model.get_submodule(layer_name)._parameters.get(parameter_name)
    except AttributeError:
        return [name]  # `find_target` says what is wrong
    if parameter is None or not is_stack(model.get_submodule(layer_name), parameter):
        return [name]
    return [f"{name}[{number}]" for number in range(whole_shape(parameter)[0])]


def is_stack(layer: nn.Module, parameter: Tensor) -> bool:
    """Whether a layer's parameter is a stack of weights, one for each expert."""
    return len(whole_shape(parameter)) == 3 and not isinstance(layer, _ConvNd)


def _refuse_shared(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise TargetError for a weight that other linear layers have, too.

    Token rows and an update of the output are those of one layer, and the weight would change in
    all of them. Tied embeddings are no linear layer.
    """
    mine = {id(target.parameter(model)): target for target in targets}
    layers: dict[int, str] = {}
    for name, module in model.named_modules():
        for weight in module._parameters.values():
            target = mine.get(id(weight))
            if target is None:
                continue
            other = layers.setdefault(id(weight), name)
            both = (module, model.get_submodule(other))
            linear = all(isinstance(one, (nn.Linear, Conv1D)) for one in both)
            if other != name and (linear or target.expert is not None):
                raise shared(target.name, other, name)


def shared(name: str, layer: str, other: str) -> TargetError:
    """The error of a target whose weight is that of two linear layers."""
    return TargetError(
        f"{name} is shared: {layer} and {other} are two layers with one weight (blocks that are "
        "used at several depths). MEND sees the tokens of one of them and would change both: take "
        "it out of inner_params and name weights that belong to one layer"
    )


def find_target(model: nn.Module, name: str) -> Target:
    """The target `name`. Raises TargetError as `find_targets` does."""
    parameter, expert = parameter_of(name)
    layer_name, _, parameter_name = parameter.rpartition(".")
    layer = _module(model, layer_name, name)
    parameters = dict(layer.named_parameters(recurse=False))
    if parameter_name not in parameters:
        have = ", ".join(parameters) or "none"
        raise TargetError(
            f"{name} is not in this model; {layer_name or 'the model'} is a "
            f"{type(layer).__name__} with these parameters of its own: {have}"
        )
    if is_stack(layer, parameters[parameter_name]):
        return _find_expert(name, layer, parameters[parameter_name])
    dimensions = len(whole_shape(parameters[parameter_name]))
    if expert is not None:
        raise TargetError(
            f"{name} names a slice, and {parameter} has {dimensions} dimension(s), not the three "
            f"of a stack of experts: write {parameter}"
        )
    linear = isinstance(layer, (nn.Linear, Conv1D))
    if parameter_name != "weight" or (dimensions != 2 and not linear):
        raise TargetError(
            f"{name} has {dimensions} dimension(s); MEND edits the two-dimensional weight of a "
            "linear layer: take it out of inner_params"
        )
    weight = parameters[parameter_name]
    _refuse_plain_slices(name, layer, weight)
    if isinstance(layer, Conv1D):
        rows, columns = whole_shape(weight) if is_distributed(weight) else (layer.nx, layer.nf)
        return Target(name, rows, columns, transposed=True)
    if isinstance(layer, nn.Linear):
        rows, columns = (
            whole_shape(weight)  # of a DTensor: that of the whole weight
            if is_distributed(weight)
            else (layer.out_features, layer.in_features)
        )
        return Target(name, columns, rows)
    raise TargetError(
        f"{name} belongs to a {type(layer).__name__}; MEND edits torch.nn.Linear and "
        "transformers' Conv1D layers: take it out of inner_params"
    )


def _find_expert(name: str, layer: nn.Module, stack: nn.Parameter) -> Target:
    """The target `name`, one expert's weight in `stack` (E, out, in), or (E, in, out).

    The layer tells which (`is_transposed`); what tells nothing is taken for out × in, and a forward
    pass that uses it otherwise is refused.
    """
    parameter, expert = parameter_of(name)
    count = whole_shape(stack)[0]
    if expert is None or expert >= count:
        raise TargetError(
            f"{name} is a stack of the weights of {count} experts: name one of them, "
            f"{parameter}[0] to {parameter}[{count - 1}]"
        )
    if is_distributed(stack) or getattr(layer, "_is_expert_parallel", False):
        raise PlacementError(
            f"{name} is split between processes, and experts can be edited only where each process "
            "has them whole: load the model with a device_map, or leave the experts out of the plan"
        )
    _refuse_plain_slices(name, layer, stack)
    transposed = bool(getattr(layer, "is_transposed", False))
    rows, columns = stack.shape[1:]
    widths = (rows, columns) if transposed else (columns, rows)
    return Target(name, *widths, transposed=transposed)


def _refuse_plain_slices(name: str, layer: nn.Module, weight: nn.Parameter) -> None:
    """Raise PlacementError for a weight that a tensor-parallel plan of transformers split without
    saying so: some of its versions leave each process a plain tensor, and mark the layer."""
    plan, mesh = getattr(layer, "_hf_tp_plan", None), getattr(layer, "_hf_device_mesh", None)
    if plan is None or is_distributed(weight) or (mesh is not None and mesh.size() == 1):
        return
    raise PlacementError(
        f"{name} is split between processes ({plan}), and this version of transformers leaves a "
        f"plain tensor {tuple(weight.shape)} of it on each, which does not say what it is a part "
        "of: load the model with a device_map, or use a version of transformers whose "
        "tensor-parallel weights are DTensors (tested: 5.23)"
    )


def highest(model: nn.Module, targets: Sequence[Target]) -> Target:
    """The target that comes last in the model's order of modules."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return max(targets, key=lambda target: order[target.layer_name])


def _module(model: nn.Module, path: str, parameter: str) -> nn.Module:
    """The module at `path`. If there is none, the TargetError says how far the path exists."""
    module = model
    walked: list[str] = []
    for step in path.split(".") if path else []:
        children = dict(module.named_children())
        if step not in children:
            raise TargetError(f"{parameter} is not in this model; {_what_is_there(walked, module)}")
        module = children[step]
        walked.append(step)
    return module


def _what_is_there(walked: list[str], module: nn.Module) -> str:
    where = ".".join(walked) or "the model"
    if isinstance(module, nn.ModuleList):
        return f"it has {len(module)} layers in {where} (0-{len(module) - 1})"
    children = [name for name, _ in module.named_children()]
    return f"{where} has {', '.join(children) or 'no modules'}" + suggestion(where, children)
