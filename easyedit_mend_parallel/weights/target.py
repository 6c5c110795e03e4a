"""Finds targets: weights of linear layers, with their widths and orientation.

Both follow from the layer and its type, never from the model's name. Knows nothing of devices or of
where the weight is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from easyedit_mend_parallel.errors import PlacementError, TargetError, suggestion


@dataclass(frozen=True)
class Target:
    """One weight to edit.

    `name` is the parameter's name in the model. `in_features` and `out_features` are the widths of
    its layer (of the whole layer, also if the weight is sharded or packed). `transposed` is true if
    the weight is stored in × out (transformers' `Conv1D`) instead of out × in (`nn.Linear`).
    """

    name: str
    in_features: int
    out_features: int
    transposed: bool = False

    @property
    def layer_name(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out). Targets of the same shape can share a network."""
        return self.in_features, self.out_features

    def layer(self, model: nn.Module) -> nn.Module:
        """The target's layer in `model`, looked up at each call, since models are re-dispatched."""
        return model.get_submodule(self.layer_name)


def find_targets(model: nn.Module, names: Sequence[str]) -> list[Target]:
    """The targets of `names` (EasyEdit's `inner_params`), in the order given.

    Raises TargetError for a name that is given twice, is not in the model, is not
    two-dimensional, or does not belong to a linear layer.
    """
    if not names:
        raise TargetError("inner_params is empty: name at least one weight to edit")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TargetError(f"inner_params names {', '.join(repeated)} more than once")
    targets = [find_target(model, name) for name in names]
    seen: dict[int, str] = {}
    for target in targets:
        weight = target.layer(model).weight
        other = seen.setdefault(id(weight), target.name)
        if other != target.name:
            raise TargetError(f"{target.name} and {other} are one tied weight: name one of them")
    _refuse_shared(model, targets)
    return targets


def _refuse_shared(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise TargetError for a weight that other linear layers have, too.

    Token rows and an update of the output are those of one layer, and the weight would change in
    all of them. Tied embeddings are no linear layer.
    """
    mine = {id(target.layer(model)._parameters.get("weight")): target for target in targets}
    layers: dict[int, str] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) not in mine:
            continue
        other = layers.setdefault(id(weight), name)
        both = (module, model.get_submodule(other))
        if other != name and all(isinstance(one, (nn.Linear, Conv1D)) for one in both):
            raise shared(mine[id(weight)].name, other, name)


def shared(name: str, layer: str, other: str) -> TargetError:
    """The error of a target whose weight is that of two linear layers."""
    return TargetError(
        f"{name} is shared: {layer} and {other} are two layers with one weight (blocks that are "
        "used at several depths). MEND sees the tokens of one of them and would change both: take "
        "it out of inner_params and name weights that belong to one layer"
    )


def find_target(model: nn.Module, name: str) -> Target:
    """The target `name`. Raises TargetError as `find_targets` does."""
    layer_name, _, parameter_name = name.rpartition(".")
    layer = _module(model, layer_name, name)
    parameters = dict(layer.named_parameters(recurse=False))
    if parameter_name not in parameters:
        have = ", ".join(parameters) or "none"
        raise TargetError(
            f"{name} is not in this model; {layer_name or 'the model'} is a "
            f"{type(layer).__name__} with these parameters of its own: {have}"
        )
    dimensions = parameters[parameter_name].dim()
    linear = isinstance(layer, (nn.Linear, Conv1D))
    if parameter_name != "weight" or (dimensions != 2 and not linear):
        raise TargetError(
            f"{name} has {dimensions} dimension(s); MEND edits the two-dimensional weight of a "
            "linear layer: take it out of inner_params"
        )
    weight = parameters[parameter_name]
    _refuse_plain_slices(name, layer, weight)
    if isinstance(layer, Conv1D):
        rows, columns = weight.shape if hasattr(weight, "to_local") else (layer.nx, layer.nf)
        return Target(name, rows, columns, transposed=True)
    if isinstance(layer, nn.Linear):
        rows, columns = (
            weight.shape  # of a DTensor: the shape of the whole weight
            if hasattr(weight, "to_local")
            else (layer.out_features, layer.in_features)
        )
        return Target(name, columns, rows)
    raise TargetError(
        f"{name} belongs to a {type(layer).__name__}; MEND edits torch.nn.Linear and "
        "transformers' Conv1D layers: take it out of inner_params"
    )


def _refuse_plain_slices(name: str, layer: nn.Module, weight: nn.Parameter) -> None:
    """Raise PlacementError for a weight that a tensor-parallel plan of transformers split without
    saying so: some of its versions leave each process a plain tensor, and mark the layer."""
    plan, mesh = getattr(layer, "_hf_tp_plan", None), getattr(layer, "_hf_device_mesh", None)
    if plan is None or hasattr(weight, "to_local") or (mesh is not None and mesh.size() == 1):
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
