"""The exceptions of this package. Each message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MendParallelError(Exception):
    """Base class of every exception that this package raises on purpose."""


class HparamsError(MendParallelError):
    """A hyperparameter file or field is invalid."""


class RequestError(MendParallelError):
    """A request has no loss: it is empty, malformed, or has only special tokens."""


class TargetError(MendParallelError):
    """A target does not exist, has the wrong kind of layer, or is not used."""


class PlacementError(MendParallelError):
    """It is unknown where a weight is stored, or the sources contradict each other."""


class ArchiveError(MendParallelError):
    """A trained hypernetwork cannot be read, is unsafe to read, or belongs to another model."""


class UpdateError(MendParallelError):
    """An update cannot be written, or a written one cannot be undone."""


class WorseError(UpdateError):
    """An update that makes its own target text less likely than before; nothing was changed."""


class EditError(MendParallelError):
    """A saved edit or a journal cannot be read, or does not fit the model."""


class TrunkError(MendParallelError):
    """Hidden states of the trunk cannot be cached, or belong to other weights."""


class DataError(MendParallelError):
    """A file of facts is invalid: the message names the file, the line or record, the field."""


class NoTrunkError(TrunkError):
    """This model or these targets have no trunk whose hidden states could be cached."""


class TrainingError(MendParallelError):
    """A training run cannot continue: too few rows, no gradient, or no step."""


class FileError(MendParallelError, OSError):
    """A file or folder cannot be written; what was there before is unchanged."""


class PluginError(MendParallelError):
    """The offer of a plugin cannot be registered."""


def suggestion(word: object, known: Iterable[object]) -> str:
    """`; did you mean 'shared'?`, or an empty string if no known word is close."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
