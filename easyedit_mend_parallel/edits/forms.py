"""The JSON values in the files of edits, as types: of saved edits and of a model's scoped edits.

A new key needs a new format version, since a reader refuses keys that it does not know.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import NotRequired, TypedDict

Sums = dict[str, str]
"""{dtype: sha256 of a tensor's bytes in that dtype}"""

Model = TypedDict(
    "Model",
    {
        "id": str,
        "class": str,
        "encoder_decoder": bool,
        "stacked": NotRequired[bool],
        "vectors": NotRequired[Sums],
    },
)
"""The base model: the name that it was loaded from, its class, whether it has an encoder and
weights of three dimensions, and the checksums of its vectors."""


class Stack(TypedDict):
    """The stack that an expert's weight lies in: its experts, and its place in its layer."""

    experts: int
    place: int


class Weight(TypedDict):
    """A weight of the base, before the edit and before all edits."""

    dtype: str
    tied: list[str]
    before: NotRequired[Sums]
    base: NotRequired[Sums]
    stack: NotRequired[Stack]


class Base(TypedDict):
    """The model that an edit was made on, by the names of the weights that it changed."""

    model: Model
    weights: dict[str, Weight]


class Below(TypedDict):
    """The weights below the lowest target, block `lowest` of `blocks`: their checksum, if any."""

    blocks: str
    lowest: int
    below: str | None
    dtype: str


class Squashed(TypedDict):
    """How an edit came from others: its rank, their rows, the relative error of each weight."""

    rank: int
    rows: int
    errors: dict[str, float]
    numbers: NotRequired[list[int]]


class Placed(TypedDict):
    """Where a weight was at the edit: its device, and how it was kept."""

    device: str
    kept: str


class About(TypedDict):
    """What is read again of what a saved edit says about itself; it says more for people."""

    base: Base
    losses: NotRequired[list[float]]
    placements: NotRequired[dict[str, Placed]]
    tokens: NotRequired[dict[str, list[str]]]
    rows: NotRequired[dict[str, int]]
    hparams: NotRequired[dict[str, Any]]
    seconds: NotRequired[float]
    scope: NotRequired[Below]
    squashed: NotRequired[Squashed]


class SavedRequest(TypedDict):
    """A request of a saved edit; `other` are its further fields."""

    prompt: str
    target_new: str
    other: dict[str, Any]
    target_space: NotRequired[str | None]


class ScopedRequestForm(TypedDict):
    """A request of a model's scoped edits: the words of its subject, the token ids of its answers
    and what they read, the number of its edit, and its rows: the number of their file, and
    {number of a target: number of a stack, first row, row after the last}."""

    prompt: str
    target: str
    subject: list[str]
    answers: list[list[int]]
    reads: list[str]
    edit: int
    file: int
    rows: dict[str, list[int]]


class ScopedAbout(TypedDict):
    """What scoped edits say about themselves."""

    base: Base
    below: Below
    versions: dict[str, str]


class ScopedIndex(TypedDict):
    """The index of a model's scoped edits: `lengths` are the tokens of each request's keys,
    `stacks` the names of stacked rows, `files` {name: sha256}."""

    kind: str
    format_version: int
    scope: dict[str, Any]
    targets: list[Any]
    requests: list[ScopedRequestForm]
    lengths: list[int]
    stacks: list[str]
    files: dict[str, str]
    about: ScopedAbout
