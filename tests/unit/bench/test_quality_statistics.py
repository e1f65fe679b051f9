"""Intervals against published tables, by coverage on made-up samples, and against mutants."""

from __future__ import annotations

import math
import random

import pytest

from nonet.bench.quality.statistics import (
    Interval,
    mean_interval,
    paired_interval,
    share_interval,
    t_quantile,
)

# Student's t, two-sided 95 %, from the usual printed table.
TABLE = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    15: 2.131,
    30: 2.042,
    120: 1.980,
}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_quantiles_of_student(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Wilson's interval without continuity correction, from Newcombe 1998, table I (cases b, d, e and f rounded to 4).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(hits: int, n: int, low: float, high: float) -> None:
    found = share_interval([True] * hits + [False] * (n - hits))
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.value == hits / n


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    rng = random.Random(0)
    held = {"mean": 0, "normal": 0, "share": 0}
    for _ in range(2000):
        found = mean_interval([rng.gauss(3.0, 2.0) for _ in range(5)])
        held["mean"] += found.low <= 3.0 <= found.high
        half = (found.high - found.value) * 1.96 / t_quantile(4)  # mutant: the normal quantile
        held["normal"] += abs(found.value - 3.0) <= half
        shares = share_interval([rng.random() < 0.9 for _ in range(30)])
        held["share"] += shares.low <= 0.9 <= shares.high
    assert 0.935 < held["mean"] / 2000 < 0.965
    assert 0.93 < held["share"] / 2000 < 0.98
    assert held["normal"] / 2000 < 0.91


def test_what_items_share_drops_out_of_a_difference() -> None:
    rng = random.Random(1)
    reference = [rng.gauss(0.0, 10.0) for _ in range(50)]
    values = [value + 0.1 + rng.gauss(0.0, 0.01) for value in reference]
    found = paired_interval(values, reference)
    assert found.low > 0.09
    assert found.high < 0.11
    assert mean_interval(values).high - mean_interval(values).low > 1


def test_edges() -> None:
    assert mean_interval([2.0]).low == -math.inf
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 2)
    assert mean_interval([0.0, math.log(4)]).exponent().value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="longer"):
        paired_interval([1.0], [1.0, 2.0])
