"""Gathers whole tensors of a model that is split between processes, one at a time.

The first process asks for tensors by name, in any order, and the others answer until it is done.
No process holds more than one whole tensor. Knows nothing of edits or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.whole import whole_tensor

DONE = 0
"""Sent by the first process at the end, instead of the number of a tensor (from 1)."""
WELL, FAILED = 0, 1
"""Sent by the others: whether they could gather their part of the last tensor."""


class Whole(Mapping[str, Tensor]):
    """The tensors of `split` by name. Each is gathered on access, on the CPU."""

    def __init__(self, split: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._split = split
        self._numbers = {name: number for number, name in enumerate(split, 1)}
        self._ranks = ranks
        self._ended = False

    def __getitem__(self, name: str) -> Tensor:
        """Raises UpdateError if another process could not gather its part of the last tensor."""
        self._say(self._numbers[name])
        return whole_tensor(self._split[name]).cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._split)

    def __len__(self) -> int:
        return len(self._split)

    def end(self) -> None:
        """Tell the others that no tensor follows. Raises UpdateError as `__getitem__` does."""
        if not self._ended:
            self._say(DONE)

    def _say(self, number: int) -> None:
        heard = self._ranks.gathered(number).tolist()
        failed = _failed(heard[1:])
        self._ended = number == DONE or failed is not None
        if failed is not None:
            raise failed


@contextmanager
def asking(split: Mapping[str, Tensor], ranks: Ranks) -> Iterator[Whole]:
    """For the first process: a mapping that gathers the tensors of `split` ({name: its part}).

    The other processes must call `answer` with their parts; it returns when the context ends.
    """
    whole = Whole(split, ranks)
    try:
        yield whole
    finally:
        whole.end()


def answer(split: Mapping[str, Tensor], ranks: Ranks) -> None:
    """For every process but the first: gather its parts until the first process is done.

    Raises the exception of this process, or an UpdateError if another process failed.
    """
    parts = list(split.values())
    error: BaseException | None = None
    while True:
        asked, *others = ranks.gathered(WELL if error is None else FAILED).tolist()
        if error is not None:
            raise error
        failed = _failed(others)
        if failed is not None:
            raise failed
        if asked == DONE:
            return
        try:
            whole_tensor(parts[int(asked) - 1])
        except BaseException as raised:  # reported to the others with the next tensor
            error = raised


def _failed(others: Sequence[float]) -> UpdateError | None:
    """The error of every process but those that failed, from what all but the first one said."""
    failed = [str(rank) for rank, state in enumerate(others, 1) if state == FAILED]
    if not failed:
        return None
    return UpdateError(
        f"rank {', '.join(failed)} could not gather a tensor; the exception raised there says why"
    )
