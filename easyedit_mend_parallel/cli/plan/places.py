"""Makes a device map as accelerate would, or checks the user's own, before anything is loaded.

Knows models on the meta device and the memory of each place, and of targets only their names.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import convert_file_size_to_int, get_balanced_memory, get_max_memory

from easyedit_mend_parallel.cli.plan.model import Sketch
from easyedit_mend_parallel.errors import HparamsError, PlacementError, suggestion
from easyedit_mend_parallel.weights.offload import RAM, SAFETENSORS, tied_names
from easyedit_mend_parallel.weights.placement import RESIDENT, as_device

Place = int | str
"""The place of a module: the number of an accelerator, "cpu", "disk", or another device's name."""
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
SPLIT = "split"
"""The place of a model that a tensor-parallel plan splits between processes."""


@dataclass(frozen=True)
class Places:
    """A device map {module: place}, and the memory limit of each place in bytes.

    `computes_on` is the place where offloaded modules compute. `by_hand`: the user wrote the map.
    `measured`: the limits are the free memory of this machine, and not the user's.
    """

    device_map: Mapping[str, Place]
    limits: Mapping[Place, int]
    computes_on: Place
    by_hand: bool
    measured: bool

    def of(self, name: str) -> Place:
        """The place of the module or parameter `name`. Raises PlacementError if the map does not
        cover it."""
        found = [key for key in self.device_map if _covers(key, name)]
        if not found:
            raise PlacementError(f"device_map has no entry for {name}")
        return self.device_map[max(found, key=len)]

    def covers(self, name: str) -> bool:
        """Whether the map covers `name`."""
        return any(_covers(key, name) for key in self.device_map)

    def kept(self, name: str) -> str:
        """How its weight would be stored, as `Placement.kept`; on disk, in safetensors files."""
        place = self.of(name)
        if place == "disk":
            return SAFETENSORS
        return RAM if place == "cpu" and self.computes_on != "cpu" else RESIDENT

    def device(self, name: str) -> Place:
        """The place where it would compute."""
        return self.of(name) if self.kept(name) == RESIDENT else self.computes_on


def read_max_memory(text: str) -> dict[Place, int]:
    """{place: bytes} from `0=20GiB,cpu=30GiB`. Raises HparamsError for any other text."""
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    limits = _limits({name.strip(): size.strip() for name, _, size in parts})
    if not limits:
        raise HparamsError("max_memory names no place; write it as in '0=20GiB,cpu=30GiB'")
    return limits


def _limits(sizes: Mapping[Any, int | str]) -> dict[Place, int]:
    limits: dict[Place, int] = {}
    for name, size in sizes.items():
        place = as_place(name)
        if not isinstance(place, int) and place not in ("cpu", "disk", "mps"):
            raise HparamsError(
                f"max_memory: {name!r} is no place; write the number of an accelerator, or cpu"
            )
        try:
            limits[place] = convert_file_size_to_int(size)
        except ValueError as error:
            raise HparamsError(
                f"max_memory: {size!r} for {name} is no size; write them as in '0=20GiB,cpu=30GiB'"
            ) from error
    return limits


def plan_places(
    sketched: Sketch,
    model_kwargs: Mapping[str, Any],
    *,
    model_parallel: bool,
    device: Place,
    max_memory: Mapping[Place, int] | None,
) -> Places:
    """The places of the model. `max_memory` is that of the machine to plan for; None: this one.

    Raises HparamsError for an invalid device map.
    """
    asked = model_kwargs.get("device_map")
    limits = dict(max_memory) if max_memory is not None else _limits_of(model_kwargs)
    if asked is None and (model_parallel or max_memory is not None):
        asked = "auto"
    if asked is None:
        asked = {"": device if device == "cpu" or torch.accelerator.device_count() else "cpu"}
        return _places(asked, limits, by_hand=False)
    if isinstance(asked, Mapping):
        return _places({str(key): as_place(value) for key, value in asked.items()}, limits, True)
    if asked not in AUTOMATIC:
        if isinstance(asked, str) and suggestion(asked, AUTOMATIC):
            raise HparamsError(f"device_map is {asked!r}" + suggestion(asked, AUTOMATIC))
        return _places({"": as_place(asked)}, limits, by_hand=True)
    return _places(_automatic(sketched, str(asked), limits), limits, by_hand=False)


def _automatic(sketched: Sketch, kind: str, limits: Mapping[Place, int] | None) -> dict[str, Place]:
    model: Any = sketched.model
    asked = None if limits is None else dict(limits)
    unsplit = list(model._no_split_modules or ())
    sizes: dict[str, Any] = {
        "no_split_module_classes": unsplit,
        "special_dtypes": dict(sketched.dtypes),
    }
    with _without_warnings():  # of places that are not on this machine
        if kind == "sequential":
            room = get_max_memory(asked)
        else:
            room = get_balanced_memory(model, asked, low_zero=kind == "balanced_low_0", **sizes)
        if limits is None and "cpu" in room:
            room["cpu"] = int(room["cpu"] * 0.9)  # as transformers does
        return dict(infer_auto_device_map(model, room, **sizes))


def problems_of(
    places: Places, sketched: Sketch, targets: Sequence[str], *, elsewhere: bool, written: bool
) -> list[str]:
    """Every problem of the map, one sentence each.

    `elsewhere`: the plan is for another machine, so places that this one lacks are no problem.
    `written`: updates are written into the weights, so tied targets must be in one place.
    """
    problems = [] if elsewhere else _absent_devices(places)
    if places.by_hand:
        problems += _uncovered(places, sketched) + _unknown_modules(places, sketched)
        problems += _overfull(places, sketched)
    for name in targets if written else ():
        others = tied_names(sketched.model, name) - {name}
        for other in sorted(others):
            if places.covers(name) and places.covers(other):
                one, two = places.of(name), places.of(other)
                if one != two:
                    problems.append(
                        f"{name} ({label(one)}) and {other} ({label(two)}) are tied, one weight "
                        "under two names: give both modules one place in device_map"
                    )
    return problems


def weights_on(places: Places, sketched: Sketch) -> dict[Place, int]:
    """{place: bytes of weights there}; tied weights, which share one tensor, count once."""
    held: dict[Place, int] = defaultdict(int)
    for name, _ in sketched.model.named_parameters():
        if places.covers(name):
            held[places.of(name)] += sketched.bytes_of[name]
    return dict(held)


def label(place: Place) -> str:
    """The displayed name of a place."""
    if isinstance(place, int):
        return f"GPU {place}"
    kind, _, number = place.partition(":")
    if kind == "cuda":
        return f"GPU {number or 0}"
    return {"cpu": "CPU", SPLIT: "split between processes"}.get(place, place)


def _uncovered(places: Places, sketched: Sketch) -> list[str]:
    missing: dict[str, int] = defaultdict(int)
    for name, _ in sketched.model.named_parameters():
        if not places.covers(name):
            missing[_block_of(name)] += 1
    if not missing:
        return []
    shown = ", ".join(list(missing)[:4]) + (", ..." if len(missing) > 4 else "")
    return [
        f"device_map leaves out {sum(missing.values())} weights, in {shown}: add an entry for "
        "each of these modules, or one named '' for all that have none"
    ]


def _unknown_modules(places: Places, sketched: Sketch) -> list[str]:
    known = {name for name, _ in sketched.model.named_modules()}
    known |= {name for name, _ in sketched.model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in sketched.model.named_buffers()}
    return [
        f"device_map has an entry for {key!r}, which this model does not have"
        + suggestion(key, known)
        for key in places.device_map
        if key not in known
    ]


def _absent_devices(places: Places) -> list[str]:
    found: dict[Place, str] = {}
    for key, place in places.device_map.items():
        problem = absent(place)
        if problem is not None:
            found.setdefault(
                place,
                f"device_map puts {key or 'the model'} on {problem}, or give --max-memory to plan "
                "for another machine",
            )
    return list(found.values())


def absent(place: Place) -> str | None:
    """Why a place is not available on this machine; None if it is."""
    if place in ("cpu", "disk"):
        return None
    try:
        found = as_device(place)
    except PlacementError as error:
        return str(error)
    count = torch.accelerator.device_count()
    if found.type == "cpu" or (found.index or 0) < count:
        return None
    many = f"{count or 'no'} accelerator{'s' if count != 1 else ''}"
    return f"{label(place)}, and this machine has {many}: name another place"


def _overfull(places: Places, sketched: Sketch) -> list[str]:
    problems = []
    for place, size in weights_on(places, sketched).items():
        says = f"device_map puts {size / 2**30:.2f} GiB of weights on {label(place)}, "
        limit = places.limits.get(place)
        if limit is not None and size > limit:
            problems.append(
                f"{says}which may take {limit / 2**30:.2f} GiB: move modules to another place"
            )
        elif limit is None and place != "disk" and not places.measured:
            problems.append(f"{says}which max_memory does not name: add it there")
    return problems


def _places(
    device_map: Mapping[str, Place], limits: Mapping[Place, int] | None, by_hand: bool
) -> Places:
    main = next((place for place in device_map.values() if place not in ("cpu", "disk")), "cpu")
    room = get_max_memory() if limits is None else limits
    return Places(device_map, room, main, by_hand, measured=limits is None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("accelerate.utils.modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _limits_of(model_kwargs: Mapping[str, Any]) -> dict[Place, int] | None:
    asked = model_kwargs.get("max_memory")
    if asked is None:
        return None
    if not isinstance(asked, Mapping):
        raise HparamsError(
            f"model_kwargs: max_memory is {asked!r}; it has to map places to sizes, such as "
            "{0: 20GiB, cpu: 30GiB}"
        )
    return _limits(asked)


def as_place(place: Any) -> Place:
    """The place that a user means by `"0"`, `0` or a torch device."""
    if isinstance(place, torch.device):
        place = str(place)
    return int(place) if isinstance(place, str) and place.isdigit() else place


def _covers(key: str, name: str) -> bool:
    return not key or name == key or name.startswith(key + ".")


def _block_of(name: str) -> str:
    """The module of `name` down to its number in a list of blocks, or its layer."""
    path = name.split(".")
    numbered = [depth for depth, step in enumerate(path) if step.isdigit()]
    return ".".join(path[: numbered[0] + 1] if numbered else path[:-1])
