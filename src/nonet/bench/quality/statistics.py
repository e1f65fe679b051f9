"""Confidence intervals of 95 %: of a mean, of a share, and of a difference taken item by item."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

__all__ = ["Interval", "mean_interval", "paired_interval", "share_interval", "t_quantile"]

Z = 1.959963984540054  # two-sided 95 % of the normal distribution


class Interval(msgspec.Struct, frozen=True):
    """A figure over `n` items and the bounds that hold the true one in 95 of 100 samples of items."""

    value: float
    low: float
    high: float
    n: int

    def exponent(self) -> Interval:
        """exp of each; of what no float holds, the largest float or so."""
        low, value, high = (math.exp(min(x, 709.0)) for x in (self.low, self.value, self.high))
        return Interval(value, low, high, self.n)


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's interval; one item has no spread, so its bounds are infinite.

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(value=2.0, low=-0.4841377118885127, high=4.484137711888513, n=3)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


def share_interval(hits: Sequence[bool]) -> Interval:
    """Wilson's interval, which stays within [0, 1] and is honest near its ends.

    >>> round(share_interval([True] * 10).low, 4)
    0.7225
    """
    n = len(hits)
    share = sum(hits) / n
    spread = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    middle = share + Z * Z / (2 * n)
    scale = 1 + Z * Z / n
    return Interval(
        share, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale), n
    )


def paired_interval(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """Of the mean difference: what the items have in common drops out."""
    return mean_interval([a - b for a, b in zip(values, reference, strict=True)])


def t_quantile(freedom: int) -> float:
    """Two-sided 95 % of Student's distribution: exact for 1 and 2, else the Cornish-Fisher series, good to 3e-3.

    >>> [round(t_quantile(n), 2) for n in (1, 2, 3, 10, 100)]
    [12.71, 4.3, 3.18, 2.23, 1.98]
    """
    if freedom == 1:
        return math.tan(0.95 * math.pi / 2)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (place + 1) for place, term in enumerate(terms))
