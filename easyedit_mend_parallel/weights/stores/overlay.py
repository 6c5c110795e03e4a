"""The store of a weight that accelerate reads from disk for each forward pass.

The edited weight is an overlay, in memory or in a private file, which accelerate reads instead of
the weight's file. The user's checkpoint and accelerate's offload folder are never modified, so no
backup is needed: an undo removes the overlay.
"""

from __future__ import annotations

import weakref
from filecmp import cmp as same_content
from functools import cached_property
from pathlib import Path

import torch
from accelerate.utils import OffloadedWeightsLoader
from torch import Tensor, nn

from easyedit_mend_parallel.errors import PlacementError, UpdateError
from easyedit_mend_parallel.weights.offload import (
    DAT,
    SAFETENSORS,
    Holder,
    find_holder,
    loaders_of,
    tied_names,
)
from easyedit_mend_parallel.weights.overlay import Overlays, WeightSource, file_of
from easyedit_mend_parallel.weights.stores.memory import room_for
from easyedit_mend_parallel.weights.stores.protocol import (
    CurrentStore,
    WeightPlace,
    let_go,
    refuse_overflow,
    refuse_unwritable,
)
from easyedit_mend_parallel.weights.update import LowRankUpdate


def offer(place: WeightPlace) -> OverlayStore | None:
    """A store for a weight on disk: in a `.dat` file, or in the checkpoint it was loaded from."""
    if place.placement.kept not in (DAT, SAFETENSORS) or place.apply != "weight":
        return None
    if place.target.expert is not None:
        raise PlacementError(
            f"{place.target.name} is one expert of a stack that lies on disk, and only whole "
            "parameters can be edited there: set `apply: output` in the hparams, or give its block "
            "a device or 'cpu' in device_map (model_kwargs)"
        )
    holder = find_holder(place.model, place.target.name)
    assert holder is not None
    return OverlayStore(place, holder)


def limit_overlays(model: nn.Module, limit: int | None) -> None:
    """From now on limit the memory of the overlays of `model` to `limit` bytes, including those
    kept for a rollback. Above the limit, overlays go to private files."""
    for loader in loaders_of(model):
        Overlays.of(loader).limit = limit


class OverlayStore:
    """A weight that a loader of accelerate's reads from a file. Holds the loader weakly.

    Raises PlacementError if the file is gone or has changed.
    """

    def __init__(self, place: WeightPlace, holder: Holder) -> None:
        self.target = place.target
        self.current_store = CurrentStore(place)
        self._key = holder.key
        self._loader = weakref.ref(holder.container)
        self._overlays = Overlays.of(holder.container)
        own = self._overlays.own_entry(self.loader, self._key)
        problem = self._problem(file_of(self._key, own, self.loader.save_folder))
        if problem is not None:
            raise PlacementError(problem)

    @property
    def loader(self) -> OffloadedWeightsLoader:
        loader = self._loader()
        if loader is None:
            raise self.current_store.moved()
        return loader

    def read(self) -> Tensor:
        """The weight as the next forward pass will use it, on the CPU."""
        return self.bits_of(self.shown())

    def stage(self, update: LowRankUpdate) -> OverlayStaged:
        """Compute the new weight on the CPU: in memory, or above the limit in a private file.

        Raises UpdateError if the file does not fit the layer, if there is no space for a private
        file, or if fp16 would overflow.
        """
        shown = self.shown()
        if not len(update.keys):  # a guard, which only restores the current state
            return OverlayStaged(self, update, shown, shown)
        weight = self.bits_of(shown)
        self._refuse_other_shape(weight)
        refuse_unwritable(self.target, self.current_store.layer, weight)
        refuse_overflow(self.target, weight, update)
        new = weight if shown.is_read_afresh else self._room_like(weight)
        update.write(new, self.target.transposed, base=weight)
        return OverlayStaged(self, update, shown, self._new_source(new))

    def _room_like(self, weight: Tensor) -> Tensor:
        """Memory for the new weight; it is not kept for later ones above the limit."""
        if self._overlays.has_room(weight.nbytes):
            return room_for(self.current_store.layer, weight)
        return torch.empty_like(weight)

    def put(self, bits: Tensor) -> None:
        """Make `bits`, cast to the weight's dtype, the current overlay."""
        self.show(self._new_source(bits.to("cpu", self.read().dtype, copy=True)))

    @property
    def is_here(self) -> bool:
        """Whether the same loader still reads the weight from disk."""
        if self.current_store.layer.get_parameter("weight").device.type != "meta":
            return False
        holder = find_holder(self.current_store.model, self.target.name)
        return (
            holder is not None
            and holder.kept in (DAT, SAFETENSORS)
            and holder.container is self._loader()
            and holder.key == self._key
        )

    def shown(self) -> WeightSource:
        """What the loader currently finds."""
        return self._overlays.source(self.loader, self._keys)

    def is_shown(self, source: WeightSource) -> bool:
        return self._overlays.is_shown(self.loader, source)

    def show(self, source: WeightSource) -> None:
        """Make the loader find `source`. Raises UpdateError if `source` is a file that changed."""
        self._refuse_changed(source)
        self._overlays.show(self.loader, source)

    def bits_of(self, source: WeightSource) -> Tensor:
        """The tensor of `source`, also after the loader is freed. Do not write to it."""
        self._refuse_changed(source)
        return source.read(self.target.name)

    def _new_source(self, weight: Tensor) -> WeightSource:
        return self._overlays.new_source(self.loader, self._keys, weight, self.target.name)

    @cached_property
    def _keys(self) -> list[str]:
        """The loader's keys of this weight: its own, then those of tied weights."""
        loader = self.loader
        own = {
            key: self._overlays.own_entry(loader, key)
            for key in loader.index
            if key in self._overlays.own or key not in loader.state_dict
        }
        entry = own[self._key]

        def file(key: str) -> str:
            return str(file_of(key, own[key], loader.save_folder))

        if entry.get("safetensors_file") is None:
            # Each name has its own `.dat` file; nothing on disk shows that two names are one
            # weight.
            declared = tied_names(self.current_store.model, self.target.name) & own.keys()
            alike = [key for key in sorted(declared) if key != self._key and own[key] == entry]
            tied = [key for key in alike if same_content(file(key), file(self._key), False)]
        else:
            source = (file(self._key), entry.get("weight_name", self._key))
            tied = [
                key
                for key in own
                if key != self._key and (file(key), own[key].get("weight_name", key)) == source
            ]
        return [self._key, *tied]

    def _problem(self, file: Path) -> str | None:
        """What happened to the weight's file since it was first seen; None if it is unchanged."""
        try:
            changed = self._overlays.is_changed(file)
        except OSError as error:
            return (
                f"{self.target.name} lies in {file}, which cannot be read ({error.strerror}): put "
                "it back, or load the model again"
            )
        if changed:
            return (
                f"{self.target.name} lies in {file}, which was changed since the model was first "
                "edited: put the old file back, or load the model again"
            )
        return None

    def _refuse_changed(self, source: WeightSource) -> None:
        problem = None if source.file is None else self._problem(source.file)
        if problem is not None:
            raise UpdateError(problem)

    def _refuse_other_shape(self, weight: Tensor) -> None:
        wanted = self.current_store.layer.get_parameter("weight").shape
        if weight.shape != wanted:
            raise UpdateError(
                f"{self.target.name} has shape {tuple(wanted)} in the model and "
                f"{tuple(weight.shape)} on disk: the file belongs to another model. Load the model "
                "again"
            )


class OverlayStaged:
    """An update of a weight on disk: what the loader finds before it, and with it."""

    independent = False

    def __init__(
        self, store: OverlayStore, update: LowRankUpdate, before: WeightSource, after: WeightSource
    ) -> None:
        self._store = store
        self._update = update
        self._before: WeightSource | None = before
        self._after: WeightSource | None = after

    @property
    def before(self) -> Tensor | None:
        """Read again each time, since the bits are in a file or in an earlier overlay."""
        return None if self._before is None else self._store.bits_of(self._before)

    def commit(self) -> None:
        if not self._store.is_here:
            self._store.current_store.write(self._update)
            return
        assert self._after is not None
        self._store.show(self._after)
        self._after = None  # the loader has it now; a second reference would keep it too long

    def undo(self) -> None:
        if self._before is None:
            raise let_go(self._store.target)
        if not self._store.is_here:
            self._store.current_store.put(self._store.bits_of(self._before))
        elif not self._store.is_shown(self._before):
            self._after = self._after or self._store.shown()  # so that it can be committed again
            self._store.show(self._before)

    def forget(self) -> None:
        self._before = self._after = None
