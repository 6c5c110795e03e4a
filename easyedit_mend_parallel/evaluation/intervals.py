"""Computes figures with 95 % intervals: shares, means and perplexities. Knows no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """A figure from `n` texts, with its 95 % interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """The mean of shares. The interval is Wilson's if all are 0 or 1, and otherwise the normal
        one, cut at 0 and 1."""
        if not all(value in (0.0, 1.0) for value in values):
            found = cls.of_numbers(values)
            return cls(found.mean, max(0.0, found.low), min(1.0, found.high), found.n)
        n = len(values)
        mean = sum(values) / n
        centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return cls(mean, max(0.0, centre - half), min(1.0, centre + half), n)

    @classmethod
    def of_numbers(cls, values: Sequence[float]) -> Score:
        """The mean of any numbers, with the normal interval."""
        n = len(values)
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
        half = Z * math.sqrt(variance / n)
        return cls(mean, mean - half, mean + half, n)

    @classmethod
    def of_perplexity(cls, losses: Sequence[float], tokens: Sequence[int]) -> Score:
        """exp(Σ losses / Σ tokens). `losses` are the sums of each text's negative log-likelihoods,
        `tokens` the numbers of its tokens. The interval is that of a ratio of sums over texts,
        since the tokens of one text are not independent."""
        n, total = len(losses), sum(tokens)
        mean = sum(losses) / total
        squares = sum((loss - mean * size) ** 2 for loss, size in zip(losses, tokens, strict=True))
        half = Z * math.sqrt(squares * n / max(n - 1, 1)) / total
        return cls(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
