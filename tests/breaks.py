"""A step of a change to a model that breaks on purpose. Knows nothing of what is claimed."""

from __future__ import annotations

from typing import Any

import pytest


class Breaks:
    """Makes the k-th call of a method of `staged` (from 0) raise, before or after its work, and
    lets every other call through."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        staged: type,
        method: str,
        k: int,
        error: type[BaseException] = KeyboardInterrupt,
        after: bool = False,
    ) -> None:
        self.calls = 0
        original = getattr(staged, method)

        def broken(one: Any) -> None:
            self.calls += 1
            if self.calls - 1 != k:
                original(one)
                return
            if after:
                original(one)
            raise error("broken on purpose")

        monkeypatch.setattr(staged, method, broken)
