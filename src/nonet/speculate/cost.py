"""How long a step takes, by the number of its tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["MEASURED_SIZES", "StepCost", "measure_cost"]

# Numbers of tokens at which steps are timed: dense where few sequences bring few drafts each.
MEASURED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a forward pass: as measured at some sizes, linear between them and beyond the last.

    >>> cost = StepCost((1, 4), (1.0, 1.3))
    >>> [round(cost(n), 3) for n in (1, 2, 4, 10)]
    [1.0, 1.1, 1.3, 1.9]
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, num_tokens: int) -> float:
        if len(self.sizes) == 1:
            return self.seconds[0]
        right = min(max(bisect_left(self.sizes, num_tokens), 1), len(self.sizes) - 1)
        low, high = self.sizes[right - 1], self.sizes[right]
        slope = (self.seconds[right] - self.seconds[right - 1]) / (high - low)
        return self.seconds[right - 1] + slope * (num_tokens - low)


def measure_cost(
    time_step: Callable[[int], float], largest: int, sizes: Sequence[int] = MEASURED_SIZES
) -> StepCost:
    """Time steps of several sizes with `time_step(num_tokens) -> seconds`.

    What disturbs a measurement makes it longer, never shorter; so no step takes longer than a larger one was seen to.
    """
    taken = [size for size in sizes if size <= largest] or [1]
    seconds = [time_step(size) for size in taken]
    for i in range(len(seconds) - 2, -1, -1):
        seconds[i] = min(seconds[i], seconds[i + 1])
    return StepCost(tuple(taken), tuple(seconds))
