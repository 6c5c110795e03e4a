"""Plans an edit before anything is loaded, and lists every problem at once.

The only module of planning that reads hyperparameters and archives. Knows nothing of how a plan is
shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyedit_mend_parallel.cli.hub import refuse_missing_tokenizer
from easyedit_mend_parallel.cli.plan import costs
from easyedit_mend_parallel.cli.plan.costs import Memory, TargetPlan
from easyedit_mend_parallel.cli.plan.experts import (
    bytes_of_target,
    problems_of_experts,
    with_each_expert,
)
from easyedit_mend_parallel.cli.plan.fit import refuse_misfit
from easyedit_mend_parallel.cli.plan.model import Sketch, misspelt, sketch
from easyedit_mend_parallel.cli.plan.places import (
    SPLIT,
    Place,
    Places,
    absent,
    as_place,
    label,
    plan_places,
    problems_of,
    weights_on,
)
from easyedit_mend_parallel.errors import ArchiveError, HparamsError, MendParallelError
from easyedit_mend_parallel.hparams import MENDParallelTrainingHparams
from easyedit_mend_parallel.hparams.recorded import with_recorded
from easyedit_mend_parallel.hparams.values import network_options, read_values, size_in_bytes
from easyedit_mend_parallel.method.archive import WAYS_OUT, load_archive
from easyedit_mend_parallel.method.hypernetwork import Hypernetwork
from easyedit_mend_parallel.plugins.manager import plugin_manager
from easyedit_mend_parallel.weights.placement import RESIDENT
from easyedit_mend_parallel.weights.target import Target, find_target, find_targets, highest

STORES = {RESIDENT: "resident", "ram": "ram", "dat": "overlay", "safetensors": "overlay"}
"""{`Placement.kept`: name of this package's store that writes such a weight}"""


@dataclass
class Plan:
    """The plan of loading a model and editing it. Facts that could not be determined are absent.

    `network` is the place of the hypernetwork, and its size in bytes. `problems` are reasons for
    which an edit would fail, one sentence each; `notes` are other remarks.
    """

    source: Path
    model: str = ""
    architecture: str = ""
    dtype: str = ""
    parameters: int = 0
    device_map: dict[str, Place] = field(default_factory=dict)
    targets: list[TargetPlan] = field(default_factory=list)
    archive: str | None = None
    archive_fits: bool | None = None
    network: tuple[Place, int] | None = None
    memory: list[Memory] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """An error of this package in the context becomes a problem."""
        try:
            yield
        except MendParallelError as error:
            self.problems.append(str(error))


def plan(
    config: str | Path,
    *,
    max_memory: Mapping[Place, int] | None = None,
) -> Plan:
    """Plan the edits that the hyperparameter file `config` describes. Loads and changes nothing.

    `max_memory` {place: bytes} is the memory of the machine to plan for; None: this machine.

    Raises HparamsError if the file cannot be read. Any other error is one of the plan's
    `problems`.
    """
    values, path = read_values(config)
    found, problems = MENDParallelTrainingHparams.every_problem(values)
    made = Plan(path, problems=problems)
    if not isinstance(found.get("model_kwargs") or {}, dict):
        found["model_kwargs"] = None
    if not isinstance(found["inner_params"], list) or not found["inner_params"]:
        found["inner_params"] = None
    training = "alg_name" not in values
    differences: list[str] = []
    with suppress(ArchiveError):  # `_archive` reports it as a problem
        untrained = bool(found["untrained"]) and not training
        found, differences = with_recorded(found, untrained=untrained)
    made.problems += differences
    sketched = _model(made, found)
    with made.collecting():
        tokenizer = found.get("tokenizer_name")
        if isinstance(tokenizer, str) and tokenizer != found.get("model_name"):
            refuse_missing_tokenizer(tokenizer)
    if sketched is not None and isinstance(found["inner_params"], list):
        found["inner_params"] = with_each_expert(sketched, found["inner_params"])
    targets = _targets(made, found, sketched) if sketched else []
    places = None
    if sketched is not None:
        with made.collecting():
            places = plan_places(
                sketched,
                found["model_kwargs"] or {},
                model_parallel=bool(found["model_parallel"]),
                device=found["device"],
                max_memory=max_memory,
            )
    if sketched is not None and places is not None:
        made.device_map = dict(places.device_map)
        _place_targets(made, found, sketched, places, targets, elsewhere=max_memory is not None)
        _note_plugins(made)
    network = _network(found, targets)
    if sketched is not None and network is not None and made.targets:
        home = _home(made, found, sketched.model, elsewhere=max_memory is not None)
        made.network = home, _bytes_of(network)
    _archive(made, found, network, training=training, fits=not differences)
    if sketched is not None and places is not None:
        _costs(made, found, sketched, places)
    return made


def _model(made: Plan, found: Mapping[str, Any]) -> Sketch | None:
    kwargs = found["model_kwargs"] or {}
    made.problems += misspelt(kwargs)
    if "model_name" not in found:
        return None
    with made.collecting():
        sketched = sketch(found["model_name"], found["model_class"], kwargs)
        made.model = str(found["model_name"])
        made.architecture = type(sketched.model).__name__
        made.dtype = str(sketched.dtype).removeprefix("torch.")
        made.parameters = sum(parameter.numel() for parameter in sketched.model.parameters())
        if sketched.safetensors is None:
            made.problems.append(
                f"{made.model} has a configuration and no weights: put its model.safetensors "
                "beside it, or download them"
            )
        return sketched
    return None


def _targets(made: Plan, found: Mapping[str, Any], sketched: Sketch) -> list[Target]:
    targets, names = [], found["inner_params"] or []
    for name in dict.fromkeys(names):
        with made.collecting():
            targets.append(find_target(sketched.model, name))
    good = {target.name for target in targets}
    with made.collecting():
        if good:  # named twice, or two names of one tied weight
            find_targets(sketched.model, [name for name in names if name in good])
    return targets


def _place_targets(
    made: Plan,
    found: Mapping[str, Any],
    sketched: Sketch,
    places: Places,
    targets: Sequence[Target],
    *,
    elsewhere: bool,
) -> None:
    """Find the place and the store of each target, and the problems of the device map."""
    kwargs, writes = found["model_kwargs"] or {}, found["apply"] != "output"
    made.problems += problems_of(
        places,
        sketched,
        list(dict.fromkeys(target.parameter_name for target in targets)),
        elsewhere=elsewhere,
        written=writes,
    )
    parts = _processes(kwargs)
    for target in targets:
        name = target.parameter_name
        if not places.covers(name):
            continue
        packed = name in sketched.dtypes
        if packed and writes:
            made.problems.append(
                f"{target.name} is quantized and cannot be written: set `apply: output`, or load "
                "the model without quantization_config"
            )
        kept = RESIDENT if parts else places.kept(name)
        written = "sharded" if parts else STORES[kept]
        made.targets.append(
            TargetPlan(
                target=target,
                place=SPLIT if parts else places.of(name),
                device=SPLIT if parts else places.device(name),
                kept=kept,
                store=written if writes else "output",
                bytes=bytes_of_target(sketched, target) // (parts or 1),
            )
        )
    made.problems += problems_of_experts(made.targets, written=writes)
    on_disk = "disk" in places.device_map.values()
    if on_disk and sketched.safetensors is False and not kwargs.get("offload_folder"):
        made.problems.append(
            "the device map puts modules on disk, and the model's weights are no safetensors: set "
            "offload_folder in model_kwargs to a folder with room for them"
        )


def _network(found: Mapping[str, Any], targets: Sequence[Target]) -> Hypernetwork | None:
    """The network for the targets that were found, on the meta device."""
    if not targets or found.get("rank") is None:
        return None
    try:
        config = network_options(found)
    except HparamsError:  # which is among the problems already
        return None
    with torch.device("meta"):
        return Hypernetwork(targets, config)


def _archive(
    made: Plan,
    found: Mapping[str, Any],
    network: Hypernetwork | None,
    *,
    training: bool,
    fits: bool,
) -> None:
    """Check the archive. `fits` is False if it is already known not to fit these hyperparameters,
    which is then a problem already."""
    untrained = bool(found.get("untrained")) and not training
    if "archive" not in found or found["archive"] is None:
        if training:
            made.notes.append("archive is null: training starts with a new network")
        elif untrained:
            made.notes.append("untrained: true without an archive: edits follow plain gradients")
        elif "archive" in found:
            made.problems.append(
                f"archive is null, and MEND edits with a trained hypernetwork: {WAYS_OUT}"
            )
        return
    made.archive = str(found["archive"])
    named = found.get("inner_params")
    with made.collecting():
        archive = load_archive(made.archive, shapes_only=True)
        if network is not None and isinstance(named, list):
            made.archive_fits = False
            if not fits:
                return
            if untrained:
                archive.refuse_other_statistics(network)
            else:
                refuse_misfit(archive, network, len(set(named)))
            if not training and not untrained and (network.config.norm or not archive.trained):
                archive.refuse_untrained()
            made.archive_fits = True


def _costs(
    made: Plan,
    found: Mapping[str, Any],
    sketched: Sketch,
    places: Places,
) -> None:
    parts = _processes(found["model_kwargs"] or {})
    held: dict[Place, int] = weights_on(places, sketched)
    if parts:
        held = {SPLIT: sketched.bytes_of[""] // parts}
    limit = None
    if found["overlay_limit"] is not None:
        with suppress(HparamsError):  # which is among the problems already
            limit = size_in_bytes("overlay_limit", found["overlay_limit"])
    itemsize = sketched.dtype.itemsize
    made.memory = costs.memory(places, held, made.targets, made.network, limit, itemsize)
    for one in made.memory:
        if one.limit is None or one.weights + one.edit <= one.limit:
            continue
        says = (
            f"the weights on {label(one.place)} and one edit take "
            f"{(one.weights + one.edit) / 2**30:.2f} GiB, and "
        )
        remedy = (
            ": move modules (device_map, max_memory) or the network (network_device), or set "
            "`apply: output`, which needs no backup"
        )
        room = f"{one.limit / 2**30:.2f} GiB"
        if places.measured:
            made.problems.append(f"{says}{room} are free there{remedy}")
        else:
            made.notes.append(
                f"{says}max_memory is {room}, for the weights: leave that room beside"
            )


def _home(
    made: Plan,
    found: Mapping[str, Any],
    model: nn.Module,
    *,
    elsewhere: bool,
) -> Place:
    """The place of the hypernetwork."""
    wish = found["network_device"]
    if wish is None:
        top = highest(model, [one.target for one in made.targets]).name
        return next(one.device for one in made.targets if one.target.name == top)
    place = as_place(wish)
    problem = None if elsewhere else absent(place)
    if problem is not None:
        made.problems.append(f"network_device puts the hypernetwork on {problem}")
    return place


def _bytes_of(network: Hypernetwork) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _processes(model_kwargs: Mapping[str, Any]) -> int:
    """The number of processes of the tensor-parallel plan; 0 without such a plan."""
    asked = model_kwargs.get("distributed_config") or model_kwargs
    options = asked if isinstance(asked, Mapping) else vars(asked)
    if not options.get("tp_plan"):
        return 0
    return int(options.get("tp_size") or os.environ.get("WORLD_SIZE") or 1)


def _note_plugins(made: Plan) -> None:
    manager = plugin_manager()
    offering = [one.plugin_name for one in manager.hook.weight_store.get_hookimpls()]
    if offering:
        made.notes.append(
            f"{', '.join(offering)} can offer stores of their own, and are asked first once the "
            "model is loaded"
        )
