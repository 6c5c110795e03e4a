"""The exceptions of this package. Each says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MendParallelError(Exception):
    """Base class of every exception that this package raises on purpose."""


class HparamsError(MendParallelError):
    """A hyperparameter file or field cannot be used."""


class RequestError(MendParallelError):
    """An edit request cannot be turned into a loss: empty, malformed, or only special tokens."""


class TargetError(MendParallelError):
    """A weight to edit does not exist, has the wrong kind of layer, or is not used."""


class PlacementError(MendParallelError):
    """Where a weight lies cannot be resolved, or what says so contradicts itself."""


class ArchiveError(MendParallelError):
    """A trained hypernetwork cannot be read, is unsafe to read, or belongs to another model."""


class UpdateError(MendParallelError):
    """An update cannot be written, or a written one cannot be taken back."""


class WorseError(UpdateError):
    """An update after which its own target would be less likely than before; nothing was kept."""


class EditError(MendParallelError):
    """A saved edit or a journal cannot be read, or does not belong to the model it is put onto."""


class TrunkError(MendParallelError):
    """Hidden states below the lowest target cannot be kept, or belong to other weights."""


class DataError(MendParallelError):
    """A file of facts cannot be read: the message names the file, the line or record, the field."""


class NoTrunkError(TrunkError):
    """This model or these targets have no trunk whose hidden states could be kept."""


class TrainingError(MendParallelError):
    """A training run cannot go on: too few rows, no gradient, or not one step made."""


class PluginError(MendParallelError):
    """A plugin offers something that cannot be registered."""


def suggestion(word: object, known: Iterable[object]) -> str:
    """`; did you mean 'shared'?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
