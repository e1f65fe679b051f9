"""What the scheduler knows of its own speed, and the view of the queues that a policy decides on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nonet.scheduler.sequence import Sequence

__all__ = ["Load", "StepCost"]

# Weight of all earlier steps when a new one is seen: about the last hundred count.
MEMORY = 0.99
ENOUGH_STEPS = 8


class StepCost:
    """Seconds of a step as a line over its tokens, fitted to the steps seen lately (weighted least squares).

    >>> cost = StepCost(max_tokens_per_step=100)
    >>> for tokens in (1, 50, 100, 20, 80, 1, 50, 100):
    ...     cost.observe(tokens, 0.01 + 0.001 * tokens)
    >>> round(cost.step_s(40), 6), round(cost.seconds(250), 6)
    (0.05, 0.28)
    """

    def __init__(self, max_tokens_per_step: int) -> None:
        self._chunk = max_tokens_per_step
        self._count = self._x = self._y = self._xx = self._xy = 0.0
        self._steps = 0

    @property
    def is_known(self) -> bool:
        """Enough steps were seen to predict with."""
        return self._steps >= ENOUGH_STEPS

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of `num_tokens` took that long."""
        x, y = float(num_tokens), seconds
        self._steps += 1
        self._count = self._count * MEMORY + 1
        self._x = self._x * MEMORY + x
        self._y = self._y * MEMORY + y
        self._xx = self._xx * MEMORY + x * x
        self._xy = self._xy * MEMORY + x * y

    def line(self) -> tuple[float, float]:
        """Seconds of any step, and seconds of each token on top; neither below zero."""
        if not self._count:
            return 0.0, 0.0
        mean_x, mean_y = self._x / self._count, self._y / self._count
        spread = self._xx / self._count - mean_x**2
        if spread <= 1e-9 * mean_x**2:  # all steps alike: share out evenly
            return 0.0, mean_y / mean_x
        slope = max(0.0, (self._xy / self._count - mean_x * mean_y) / spread)
        start = mean_y - slope * mean_x
        return (start, slope) if start >= 0 else (0.0, mean_y / mean_x)

    def step_s(self, num_tokens: int) -> float:
        """Predicted seconds of one step."""
        start, slope = self.line()
        return start + slope * num_tokens

    def seconds(self, num_tokens: int, beside: int = 0) -> float:
        """Predicted seconds to compute that many tokens in full steps, each with `beside` tokens of others."""
        start, slope = self.line()
        steps = math.ceil(num_tokens / max(1, self._chunk - beside))
        return steps * (start + slope * beside) + slope * num_tokens

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a step of at most `seconds` may have."""
        start, slope = self.line()
        return int((seconds - start) / slope) if slope > 0 and seconds > start else 0


@dataclass(frozen=True, slots=True)
class Load:
    """A live, read-only view of who waits and who runs."""

    waiting: Mapping[int, Sequence]
    running: Mapping[int, Sequence]
    cost: StepCost = field(repr=False)

    def drain_s(self) -> float:
        """Predicted seconds until all that waits now is computed."""
        tokens = sum(seq.num_remaining for seq in self.waiting.values())
        return self.cost.seconds(tokens, beside=len(self.running)) if tokens else 0.0
