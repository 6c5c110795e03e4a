"""Reads and writes trained hypernetworks, in EasyEdit's format or in one without pickle.

Reading runs no code. Knows a hypernetwork's state, and nothing of the model that it edits.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from easyedit_mend_parallel.errors import ArchiveError
from easyedit_mend_parallel.files import (
    HEADER,
    changed_part,
    is_there,
    read_tensors,
    write_tensors,
    written_whole,
)
from easyedit_mend_parallel.method.hypernetwork import STATISTICS, Hypernetwork
from easyedit_mend_parallel.method.kept_scope import HEADER as SCOPE
from easyedit_mend_parallel.method.kept_scope import without_scope
from easyedit_mend_parallel.weights.scope import Scope

log = logging.getLogger(__name__)

FORMAT_VERSION, WITH_SCOPE = 1, 3
"""Versions of the format without a scope, and with one; scopes of version 2 have fewer heads."""
CONFIG_CLASS = re.compile(r"transformers\.(models\.\w+\.)?configuration_\w+\.\w+")
"""Classes that EasyEdit's archives pickle besides tensors: the configuration of the model."""
OLD_PREFIX, PREFIX = "gtn.", "mend."
RATES = "edit_lrs"
WAYS_OUT = (
    "train one for this model and these inner_params (EasyEdit's EditTrainer with alg: "
    "MEND_PARALLEL, or alg: MEND), or edit without one: set `untrained: true`, with `archive: "
    "null` or with statistics that `mend-parallel calibrate` gathers in minutes"
)
"""Advice for users without an archive."""


@dataclass(frozen=True)
class Archive:
    """A trained hypernetwork as read from a file: `state` has EasyEdit's keys, tensors on the CPU.

    `header` says how the labels were made and whether the network was trained; in a safetensors
    file also its targets, options and base model. It is empty if EasyEdit's own trainer wrote the
    file. `has_optimizer`: the file also has the state from which EasyEdit's trainer resumes.
    `scope` is the scope that was trained for the network, or None.
    """

    path: Path
    state: dict[str, Tensor]
    header: dict[str, Any] = field(default_factory=dict)
    has_optimizer: bool = False
    scope: Scope | None = None

    @property
    def trained(self) -> bool:
        """False if the archive has only statistics and no trained network (`calibrate`)."""
        return not self.header.get("untrained", False)

    @property
    def special_tokens_in_labels(self) -> bool:
        """Whether the labels of its training had special tokens. If the archive does not say so,
        as with EasyEdit's labels: true."""
        return bool(self.header.get("special_tokens_in_labels", True))

    def say_other_labels(self, special_tokens_in_labels: bool) -> None:
        """Log a warning if the hyperparameters make other labels than the archive's training."""
        if self.special_tokens_in_labels != special_tokens_in_labels:
            log.warning(
                "the archive %s was made with special_tokens_in_labels: %s, and the "
                "hyperparameters say %s: edits will have labels that its training did not have. "
                "Write `special_tokens_in_labels: %s`, or make the archive anew (it makes no "
                "difference where the tokenizer adds no special token to a text)",
                self.path,
                _yaml(self.special_tokens_in_labels),
                _yaml(special_tokens_in_labels),
                _yaml(self.special_tokens_in_labels),
            )

    def load_into(self, network: Hypernetwork, *, untrained: bool = False) -> None:
        """Copy the archive's tensors into `network`, on the network's device, as fp32.

        Raises ArchiveError if the archive was made for other targets or options, or if it was
        never trained and `untrained` is false. The network is then unchanged.
        """
        self.refuse_other(self.differences(network))
        if not untrained and (network.config.norm or not self.trained):
            self.refuse_untrained()
        # A network on the meta device takes the archive's tensors themselves and shares their
        # memory, so that no second copy of that size is allocated.
        empty = network.edit_lrs.is_meta
        state = {name: tensor.float() for name, tensor in self.state.items()}
        network.load_state_dict(state, assign=empty)

    def load_statistics_into(self, network: Hypernetwork) -> None:
        """Copy only the archive's statistics into `network`, which may have another rank.

        Raises ArchiveError as `refuse_other_statistics` does.
        """
        self.refuse_other_statistics(network)
        given = {name: t.float() for name, t in self.state.items() if _is_statistic(name)}
        network.load_state_dict(given, strict=False)

    def refuse_other_statistics(self, network: Hypernetwork) -> None:
        """Raise ArchiveError if the statistics are of other targets, or are not numbers."""
        differences = self.differences(network)
        self.refuse_other({name: differences[name] for name in differences if _is_statistic(name)})
        self._refuse_not_finite()

    def differences(self, network: Hypernetwork) -> dict[str, str]:
        """{name of a tensor: how its shape in the archive differs from that in `network`}."""
        wanted = network.state_dict()
        return {
            name: f"{name} is {_shape(self.state.get(name))} in the archive and "
            f"{_shape(wanted.get(name))} here"
            for name in {**wanted, **self.state}
            if _shape(self.state.get(name)) != _shape(wanted.get(name))
        }

    def refuse_other(self, differences: Mapping[str, str]) -> None:
        """Raise ArchiveError if there are `differences`."""
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise ArchiveError(
                f"the archive {self.path} does not fit these targets: "
                f"{'; '.join(list(differences.values())[:3])}{more}. It was made for another "
                "model, other inner_params, or other network options (rank, n_hidden, combine, "
                "shared, ...)"
            )

    def refuse_untrained(self) -> None:
        """Raise ArchiveError if the network was never trained: the archive has only statistics, or
        not even those."""
        if not self.trained:
            raise ArchiveError(
                f"the archive {self.path} holds statistics and no trained network: set "
                "`untrained: true` to edit with them, or train from it"
            )
        self._refuse_not_finite()

    def _refuse_not_finite(self) -> None:
        bad = [
            name
            for name, tensor in self.state.items()
            if name.rpartition(".")[2] in ("u_mean", "v_mean", "u_std", "v_std")
            and not torch.isfinite(tensor).all()
        ]
        if bad:
            raise ArchiveError(
                f"the archive {self.path} holds a network that was never trained: {bad[0]} is not "
                "a number. Train it, or use an archive saved after at least one training step"
            )


def load_archive(path: str | Path, *, shapes_only: bool = False) -> Archive:
    """Read a trained hypernetwork: a file of `save_archive` or one that EasyEdit's trainer wrote.

    Reading runs no code: safetensors contains only tensors, and a pickle is read with torch's
    `weights_only`, with an inert class instead of transformers' configuration classes.
    With `shapes_only`, matrices in safetensors stay on disk: they are tensors without values (on
    the meta device), which is enough to check whether the archive fits.

    Raises ArchiveError for a file that is missing, truncated, no archive, or would run code.
    """
    path = Path(path)
    if not is_there(path, ArchiveError):
        raise ArchiveError(
            f"there is no archive at {path.absolute()}. Set `archive` to a file that is there; if "
            f"you have none: {WAYS_OUT}"
        )
    if path.suffix == ".safetensors":
        try:
            state, header = read_tensors(path, matrices=not shapes_only)
        except (SafetensorError, ValueError, OSError, RecursionError) as error:
            raise ArchiveError(f"{path} is not a whole safetensors file: {error}") from error
        if not isinstance(header, dict):
            raise ArchiveError(f"{path} is damaged: its header is no JSON object")
        if header.get("format_version", FORMAT_VERSION) not in (FORMAT_VERSION, 2, WITH_SCOPE):
            raise ArchiveError(
                f"{path} has format {header['format_version']!r}, which this version does not "
                "read: install the version of easyedit-mend-parallel that wrote it"
            )
        scope = None
        if not shapes_only:
            state, scope = without_scope(state, header, path)
        state = {name: one for name, one in state.items() if not name.startswith(f"{SCOPE}.")}
        return Archive(path, named_as_today(path, state), header, scope=scope)
    changed = changed_part(path)
    if changed:
        raise ArchiveError(
            f"{path} is damaged: {changed} was changed since it was written; copy or train it again"
        )
    with readable(path):
        content = _read_pickle(path)
    state = named_as_today(path, content["model"])
    return Archive(
        path, state, _header_in(content["model"]), has_optimizer=content.get("opt") is not None
    )


def save_archive(
    path: str | Path,
    network: Hypernetwork,
    *,
    model_config: Mapping[str, Any] | None = None,
    half: bool = False,
    special_tokens_in_labels: bool = True,
    **header: Any,
) -> Path:
    """Write `network` to `path`, whole or not at all.

    A path that ends in `.safetensors` gets the format without pickle. Its metadata has the targets,
    the options, `special_tokens_in_labels` (how the labels of its training were made) and `header`
    (JSON values). `half` then stores matrices in fp16, and statistics, counts and rates in fp32,
    since fp16 cannot represent them. Any other path gets EasyEdit's format, which EasyEdit's
    executor and trainer read. It stores `model_config` (`model.config.to_dict()`) as a plain
    dictionary, since torch 2.6 and later refuses to load a pickled configuration object, with the
    header in it under this package's name.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    header = {"special_tokens_in_labels": special_tokens_in_labels, **header}
    if path.suffix == ".safetensors":
        if half:
            state = {name: _halved(name, tensor) for name, tensor in state.items()}
        about = {
            "format_version": FORMAT_VERSION,
            "targets": [asdict(target) for target in network.targets],
            "config": asdict(network.config),
            **header,
        }
        write_tensors(path, state, about)
        return path
    with written_whole(path) as temporary, temporary.open("wb") as file:
        torch.save(
            {
                "model": {**state, "model_config": with_header(model_config or {}, header)},
                "opt": None,
                "lr_opt": None,
                "val_stats": None,
                "start_time": None,
                "elapsed_time": None,
                "step": 0,
            },
            file,
        )
    return path


def with_header(model_config: Mapping[str, Any], header: Mapping[str, Any]) -> dict[str, Any]:
    """`model_config` of EasyEdit's format, which EasyEdit does not read, with our header."""
    return {**model_config, HEADER: dict(header)}


def _header_in(model: Mapping[str, Any]) -> dict[str, Any]:
    config = model.get("model_config")
    header = config.get(HEADER) if isinstance(config, Mapping) else None
    return dict(header) if isinstance(header, Mapping) else {}


class _StandIn:
    """Replaces a pickled configuration class: stores its arguments and does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """While the context lasts, `torch.load` reads EasyEdit's archive at `path` and runs no code.

    torch 2.6 and later refuses the pickled configuration in it; an inert class replaces that.
    Raises ArchiveError if the file is no archive, or names any other class.
    """
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a broken file can make torch raise anything
        raise ArchiveError(
            f"{path} is not a whole archive ({type(error).__name__}: {error}); copy or train it "
            "again"
        ) from error
    refused = [name for name in needed if not CONFIG_CLASS.fullmatch(name)]
    if refused:
        raise ArchiveError(
            f"{path} would run code when loaded: it asks for {', '.join(refused)}. Nothing was "
            "loaded. An archive needs only tensors; save it again from a source that you trust"
        )
    stand_ins: list[Any] = [(_StandIn, name) for name in needed]
    with torch.serialization.safe_globals(stand_ins):
        yield


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a flipped bit can make the unpickler raise anything
        raise ArchiveError(f"{path} is not a whole archive: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ArchiveError(
            f"{path} is not an archive: EasyEdit's trainer writes a dictionary with the "
            "hypernetwork under 'model'"
        )
    return content


def named_as_today(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under the current names (older archives have `gtn.` instead of `mend.`)."""
    tensors = {
        PREFIX + name.removeprefix(OLD_PREFIX) if name.startswith(OLD_PREFIX) else name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    if RATES not in tensors:
        raise ArchiveError(
            f"{path} is not an archive of MEND: it has no {RATES!r} among its "
            f"{len(tensors)} tensors"
        )
    return tensors


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _yaml(value: bool) -> str:
    return str(value).lower()


def _halved(name: str, tensor: Tensor) -> Tensor:
    keep = name == RATES or name.rpartition(".")[2] in STATISTICS
    return tensor if keep else tensor.half()


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"
