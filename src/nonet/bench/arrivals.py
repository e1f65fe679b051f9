"""When requests are sent, in seconds from the start; decided beforehand, so that a slow server cannot slow the load."""

from __future__ import annotations

import random

from nonet.bench.workload import Workload
from nonet.core.errors import ConfigError

__all__ = ["all_at_once", "poisson", "recorded"]


def all_at_once(workload: Workload) -> list[float]:
    """Everything at time 0."""
    return [0.0] * len(workload.items)


def poisson(workload: Workload, rate_per_s: float, seed: int) -> list[float]:
    """A Poisson process: sums of exponential gaps by seed.

    >>> from nonet.bench.workload import mix
    >>> [round(at, 3) for at in poisson(mix(2), 1.0, seed=7)]
    [0.391, 0.555]
    """
    if not 0 < rate_per_s < float("inf"):
        raise ConfigError(f"the rate is {rate_per_s} requests per second; give a number above 0")
    rng = random.Random(seed)
    times: list[float] = []
    now = 0.0
    for _ in workload.items:
        now += rng.expovariate(rate_per_s)
        times.append(now)
    return times


def recorded(workload: Workload) -> list[float]:
    """The trace's own times, first request at 0."""
    first = min((item.arrival_s for item in workload.items), default=0.0)
    return [item.arrival_s - first for item in workload.items]
